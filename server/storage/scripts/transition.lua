-- Prefixed to the scripts that change a round: compare-and-set with fencing.
-- ARGV[1..9]: fence, number, expected version (0: the round is new), phase, base, goal, deadline,
-- state, oldest version that an update may start from. Returns 0 committed, 1 stale, 2 fenced.
local function transition(prefix)
  if redis.call('HGET', prefix .. 'lease', 'fence') ~= ARGV[1] then return 2 end
  local key = prefix .. 'round'
  local stored = redis.call('HMGET', key, 'number', 'version', 'phase')
  if ARGV[3] == '0' then
    local before = tonumber(stored[1] or 0)
    local open = stored[3] and stored[3] ~= 'published' and stored[3] ~= 'abandoned'
    if open or tonumber(ARGV[2]) ~= before + 1 then return 1 end
    redis.call('HSET', key, 'accepted', 0)
    redis.call('HDEL', prefix .. 'privacy', 'exhausted')
  elseif stored[1] ~= ARGV[2] or stored[2] ~= ARGV[3] then
    return 1
  end
  redis.call('HSET', key, 'number', ARGV[2], 'version', string.format('%.0f', ARGV[3] + 1),
    'phase', ARGV[4], 'base', ARGV[5], 'goal', ARGV[6], 'deadline', ARGV[7], 'state', ARGV[8],
    'oldest', ARGV[9])
  redis.call('PUBLISH', prefix .. 'events', ARGV[4])
  return 0
end
