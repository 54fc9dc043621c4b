-- KEYS[1] prefix. ARGV: the transition; revision of the ledger that the decision to open rests on; the
-- round's charge. A private round and the reservation of its charge are one step, so that no device
-- is ever selected for a round that is not in the ledger.
local prefix = KEYS[1]
if (redis.call('HGET', prefix .. 'privacy', 'revision') or '0') ~= ARGV[10] then return 1 end
local code = transition(prefix)
if code ~= 0 then return code end
redis.call('HSET', prefix .. 'reserved', ARGV[2], ARGV[11])
redis.call('HINCRBY', prefix .. 'privacy', 'revision', 1)
return 0
