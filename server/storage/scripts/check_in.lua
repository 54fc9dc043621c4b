-- KEYS[1] prefix. ARGV: device, check-in id, how long the offer stands (ms), cohort size wanted.
-- Returns {verdict, round, ms left, base version, state}; verdicts are CheckInVerdict.
-- The check-in id that led to a selection gets that selection again, whatever happened since.
local prefix, device, id = KEYS[1], ARGV[1], ARGV[2]
local now = now_ms()
local task = redis.call('HMGET', prefix .. 'task', 'published', 'num_rounds')
local r = redis.call('HMGET', prefix .. 'round', 'number', 'phase', 'deadline', 'accepted', 'goal',
  'base', 'state')
local number, phase = r[1] or '0', r[2]
local selected_by = redis.call('HGET', prefix .. 'cohort:' .. number, device)
if selected_by then
  local left = 0
  if phase == 'collecting' and tonumber(r[4]) < tonumber(r[5]) then
    left = math.max(0, tonumber(r[3]) - now)
  end
  local submitted = redis.call('HEXISTS', prefix .. 'submissions:' .. number, device) == 1
  if (selected_by == id and id ~= '') or (left > 0 and not submitted) then
    return {0, number, left, r[6], r[7]}
  end
end
if tonumber(task[1]) >= tonumber(task[2]) then return {4, number, 0, '0', ''} end
if redis.call('HGET', prefix .. 'privacy', 'exhausted') then return {5, number, 0, '0', ''} end
-- Each offer clears away a few that lapsed, so that devices which never return leave nothing.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'waiting', '-inf',
  string.format('(%.0f', now), 'LIMIT', 0, 16)) do
  redis.call('ZREM', prefix .. 'waiting', gone)
  redis.call('HDEL', prefix .. 'offers', gone)
end
local new = redis.call('ZADD', prefix .. 'waiting', string.format('%.0f', now + ARGV[3]), device)
redis.call('HSET', prefix .. 'offers', device, id)
-- Only a new offer is news: one that is renewed would wake those who renew theirs, for ever.
if phase == 'selecting' and new == 1
  and redis.call('ZCARD', prefix .. 'waiting') >= tonumber(ARGV[4]) then
  redis.call('PUBLISH', prefix .. 'drive', 'enough')
end
if phase == 'selecting' or not phase then return {1, number, 0, '0', ''} end
if phase == 'collecting' then return {2, number, 0, '0', ''} end
return {3, number, 0, '0', ''}
