-- KEYS[1] prefix. ARGV: owner, ttl in ms. Returns the fencing token, or 0 while another leads.
-- An owner that comes back before anybody else keeps its token: nothing happened in between.
local key, now = KEYS[1] .. 'lease', now_ms()
local lease = redis.call('HMGET', key, 'owner', 'fence', 'expires_ms')
local fence = tonumber(lease[2] or 0)
if lease[1] ~= ARGV[1] then
  if lease[3] and tonumber(lease[3]) > now then return 0 end
  fence = fence + 1
end
redis.call('HSET', key, 'owner', ARGV[1], 'fence', fence,
  'expires_ms', string.format('%.0f', now + ARGV[2]))
return fence
