-- KEYS[1] prefix. ARGV: the transition, then the devices selected. Selection is what counts as
-- participation, so that caps hold whatever the device does next; the privacy ledger's count of the
-- busiest device changes in the same step.
local prefix = KEYS[1]
local code = transition(prefix)
if code ~= 0 then return code end
local cohort = prefix .. 'cohort:' .. ARGV[2]
local most, moved = 0, {}
for i = 10, #ARGV do
  local device = ARGV[i]
  redis.call('HSET', cohort, device, redis.call('HGET', prefix .. 'offers', device) or '')
  local known = redis.call('HGET', prefix .. 'devices', device) or '0:0'
  local count = tonumber(string.match(known, ':(%d+)$')) + 1
  redis.call('HSET', prefix .. 'devices', device, ARGV[2] .. ':' .. count)
  redis.call('ZREM', prefix .. 'waiting', device)
  redis.call('HDEL', prefix .. 'offers', device)
  most, moved[count] = math.max(most, count), (moved[count] or 0) + 1
end
for count, devices in pairs(moved) do
  local left = redis.call('HINCRBY', prefix .. 'participations', count - 1, -devices)
  -- Nobody counts those of 0 rounds, nor did an older release count anybody.
  if left <= 0 then redis.call('HDEL', prefix .. 'participations', count - 1) end
  redis.call('HINCRBY', prefix .. 'participations', count, devices)
end
if most > tonumber(redis.call('HGET', prefix .. 'privacy', 'max_participations') or 0) then
  redis.call('HSET', prefix .. 'privacy', 'max_participations', most)
  redis.call('HINCRBY', prefix .. 'privacy', 'revision', 1)
end
return 0
