-- KEYS[1] prefix. ARGV: first version's JSON, number of rounds. Keeps what exists.
local task = KEYS[1] .. 'task'
if redis.call('HSETNX', task, 'current', 1) == 1 then
  redis.call('HSET', task, 'latest', 1, 'published', 0)
  redis.call('HSET', KEYS[1] .. 'models', 1, ARGV[1])
end
redis.call('HSET', task, 'num_rounds', ARGV[2])
return 0
