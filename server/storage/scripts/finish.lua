-- KEYS[1] prefix. ARGV: the transition; summary and record JSON; retention in s; model version
-- ('0': none) and model JSON; the number of contributions in the record, which is stale where another
-- update was admitted since it was made; the round's charge ('': none); '1' where every update is a
-- release, to whoever it was sent.
-- The round's end, its record, its charge and, where there is one, the new current model are one step.
-- Returns 3 where the base is no longer the current version.
local prefix, number, base = KEYS[1], ARGV[2], ARGV[5]
local summary, record, retention = ARGV[10], ARGV[11], ARGV[12]
local version, model = ARGV[13], ARGV[14]
local task = prefix .. 'task'
if redis.call('HLEN', prefix .. 'submissions:' .. number) ~= tonumber(ARGV[15]) then return 1 end
if version ~= '0' then
  if redis.call('HGET', task, 'current') ~= base then return 3 end
  if tonumber(redis.call('HGET', task, 'latest')) + 1 ~= tonumber(version) then return 1 end
end
local phase = redis.call('HGET', prefix .. 'round', 'phase')
local code = transition(prefix)
if code ~= 0 then return code end
-- What is stored decides, not the caller: from 'aggregating' on noise may have been drawn and sums
-- been opened, so the reservation is charged, whatever came of it. Before, nothing was, but for updates
-- that devices noised themselves: those were released when they came.
local charge = redis.call('HGET', prefix .. 'reserved', number) or ARGV[16]
if charge ~= '' then
  if version ~= '0' or phase == 'aggregating' or phase == 'validating'
    or (ARGV[17] == '1' and phase ~= 'selecting') then
    redis.call('HINCRBY', prefix .. 'charges', charge, 1)
  end
  redis.call('HDEL', prefix .. 'reserved', number)
  redis.call('HINCRBY', prefix .. 'privacy', 'revision', 1)
  if version ~= '0' then redis.call('HINCRBY', prefix .. 'privacy', 'published', 1) end
end
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
