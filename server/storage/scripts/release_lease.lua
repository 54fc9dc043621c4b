-- KEYS[1] prefix. ARGV: fence. Lets the next leader start at once; the token stays.
local key = KEYS[1] .. 'lease'
if redis.call('HGET', key, 'fence') == ARGV[1] then
  redis.call('HSET', key, 'expires_ms', 0, 'owner', '')
end
return 0
