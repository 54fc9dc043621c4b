-- KEYS[1] prefix. ARGV: the transition, then the devices selected. Selection is what counts as
-- participation, so that caps hold whatever the device does next.
local prefix = KEYS[1]
local code = transition(prefix)
if code ~= 0 then return code end
local cohort = prefix .. 'cohort:' .. ARGV[2]
for i = 10, #ARGV do
  local device = ARGV[i]
  redis.call('HSET', cohort, device, redis.call('HGET', prefix .. 'offers', device) or '')
  local known = redis.call('HGET', prefix .. 'devices', device) or '0:0'
  local count = tonumber(string.match(known, ':(%d+)$')) + 1
  redis.call('HSET', prefix .. 'devices', device, ARGV[2] .. ':' .. count)
  redis.call('ZREM', prefix .. 'waiting', device)
  redis.call('HDEL', prefix .. 'offers', device)
end
return 0
