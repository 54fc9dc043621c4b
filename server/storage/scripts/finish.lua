-- KEYS[1] prefix. ARGV: the transition; summary and record JSON; retention in s; model version
-- ('0': none) and model JSON; the number of contributions in the record, which is stale where another
-- update was admitted since it was made. The round's end, its record and, where there is one, the new
-- current model are one step. Returns 3 where the base is no longer the current version.
local prefix, number, base = KEYS[1], ARGV[2], ARGV[5]
local summary, record, retention = ARGV[10], ARGV[11], ARGV[12]
local version, model = ARGV[13], ARGV[14]
local task = prefix .. 'task'
if redis.call('HLEN', prefix .. 'submissions:' .. number) ~= tonumber(ARGV[15]) then return 1 end
if version ~= '0' then
  if redis.call('HGET', task, 'current') ~= base then return 3 end
  if tonumber(redis.call('HGET', task, 'latest')) + 1 ~= tonumber(version) then return 1 end
end
local code = transition(prefix)
if code ~= 0 then return code end
if version ~= '0' then
  redis.call('HSET', prefix .. 'models', version, model)
  redis.call('HSET', task, 'current', version, 'latest', version)
  redis.call('HINCRBY', task, 'published', 1)
end
redis.call('RPUSH', prefix .. 'finished', summary)
redis.call('LTRIM', prefix .. 'finished', -10000, -1)
redis.call('HSET', prefix .. 'outbox', number, record)
redis.call('UNLINK', prefix .. 'payloads:' .. number)
for _, name in ipairs({'cohort:', 'submissions:', 'rejected:'}) do
  redis.call('EXPIRE', prefix .. name .. number, retention)
end
return 0
