-- KEYS[1] prefix. ARGV: the transition, to a round that is abandoned before it began; revision of the
-- ledger that the refusal rests on; summary and record JSON. The refused round takes a number, so that
-- it is told in the list of rounds and in the audit log as every other, once.
local prefix = KEYS[1]
if (redis.call('HGET', prefix .. 'privacy', 'revision') or '0') ~= ARGV[10] then return 1 end
local code = transition(prefix)
if code ~= 0 then return code end
redis.call('HSET', prefix .. 'privacy', 'exhausted', 1)
redis.call('HINCRBY', prefix .. 'privacy', 'revision', 1)
redis.call('RPUSH', prefix .. 'finished', ARGV[11])
redis.call('LTRIM', prefix .. 'finished', -10000, -1)
redis.call('HSET', prefix .. 'outbox', ARGV[2], ARGV[12])
return 0
