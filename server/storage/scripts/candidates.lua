-- KEYS[1] prefix. Returns device, lapse time, participations record, ... of every standing offer.
local prefix = KEYS[1]
local offers = redis.call('ZRANGEBYSCORE', prefix .. 'waiting', string.format('%.0f', now_ms()),
  '+inf', 'WITHSCORES')
local found = {}
for i = 1, #offers, 2 do
  found[#found + 1] = offers[i]
  found[#found + 1] = offers[i + 1]
  found[#found + 1] = redis.call('HGET', prefix .. 'devices', offers[i]) or ''
end
return found
