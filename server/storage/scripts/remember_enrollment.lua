-- KEYS[1] the token's key. ARGV: CSR hash, chain, seconds to keep. The first writer wins.
if redis.call('HSETNX', KEYS[1], 'csr', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'chain', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'csr', 'chain')
