-- KEYS[1] prefix. One consistent reading: clock, round, counters.
local now = now_ms()
local task = redis.call('HMGET', KEYS[1] .. 'task', 'current', 'latest', 'published')
local round = redis.call('HMGET', KEYS[1] .. 'round', 'state', 'accepted')
local waiting = redis.call('ZCOUNT', KEYS[1] .. 'waiting', now, '+inf')
local exhausted = redis.call('HGET', KEYS[1] .. 'privacy', 'exhausted')
return {now, task[1], task[2], task[3], round[1], round[2], waiting, exhausted}
