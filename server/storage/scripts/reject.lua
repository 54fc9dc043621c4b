-- KEYS[1] prefix. ARGV: round, device. Counts a device with a refused update once, while it matters.
local prefix = KEYS[1]
local r = redis.call('HMGET', prefix .. 'round', 'number', 'phase')
if r[1] == ARGV[1] and r[2] == 'collecting'
  and redis.call('HEXISTS', prefix .. 'cohort:' .. ARGV[1], ARGV[2]) == 1 then
  redis.call('SADD', prefix .. 'rejected:' .. ARGV[1], ARGV[2])
end
return 0
