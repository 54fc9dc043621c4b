-- KEYS[1] prefix. Returns device, lapse time, participations record, ... of every standing offer;
-- lapsed offers are forgotten.
local prefix, now = KEYS[1], now_ms()
local lapsed = redis.call('ZRANGEBYSCORE', prefix .. 'waiting', '-inf', '(' .. now)
for _, device in ipairs(lapsed) do
  redis.call('ZREM', prefix .. 'waiting', device)
  redis.call('HDEL', prefix .. 'offers', device)
end
local offers = redis.call('ZRANGE', prefix .. 'waiting', 0, -1, 'WITHSCORES')
local found = {}
for i = 1, #offers, 2 do
  found[#found + 1] = offers[i]
  found[#found + 1] = offers[i + 1]
  found[#found + 1] = redis.call('HGET', prefix .. 'devices', offers[i]) or ''
end
return found
