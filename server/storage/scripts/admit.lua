-- KEYS[1] prefix. ARGV[1]: 'admit' or 'probe' (same verdict, nothing stored); then per update:
-- round, device, submission id, digest, model version, facts, payload ('' where it is a blob).
-- Returns verdict, accepted-at, ... in order; verdicts are AdmissionVerdict.
-- A stored submission is 'id|digest|facts|accepted-at'.
-- What is stored answers first: a retry gets its receipt also after the round has ended.
local prefix, store = KEYS[1], ARGV[1] == 'admit'
local now = now_ms()
local r = redis.call('HMGET', prefix .. 'round', 'number', 'phase', 'deadline', 'accepted', 'goal',
  'base', 'oldest')
local number, accepted = tonumber(r[1] or 0), tonumber(r[4] or 0)
local goal = tonumber(r[5] or 0)
local base = tonumber(r[6] or 0)
local oldest = tonumber(r[7] or base)
local open = r[2] == 'collecting' and now < tonumber(r[3])

local function judge(i)
  local round, device, id, digest = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local submissions = prefix .. 'submissions:' .. round
  local known = redis.call('HGET', submissions, device)
  if known then
    local mark = id .. '|'
    if string.sub(known, 1, #mark) ~= mark then return 3, 0 end
    mark = mark .. digest .. '|'
    if string.sub(known, 1, #mark) ~= mark then return 2, 0 end
    return 1, string.match(known, '|(%d+)$')
  end
  local n = tonumber(round)
  if n > number then return 6, 0 end
  local cohort = prefix .. 'cohort:' .. round
  if redis.call('HEXISTS', cohort, device) == 0 then
    if n == number and r[2] == 'selecting' then return 6, 0 end
    if redis.call('EXISTS', cohort) == 1 then return 4, 0 end
    return 5, 0
  end
  if n < number or not open or accepted >= goal then return 5, 0 end
  local from = tonumber(ARGV[i + 4])
  if from > base or from < oldest then return 7, 0 end
  if store then
    redis.call('HSET', submissions, device,
      id .. '|' .. digest .. '|' .. ARGV[i + 5] .. '|' .. string.format('%.0f', now))
    if ARGV[i + 6] ~= '' then
      redis.call('HSET', prefix .. 'payloads:' .. round, device, ARGV[i + 6])
    end
    accepted = redis.call('HINCRBY', prefix .. 'round', 'accepted', 1)
    if accepted == goal then redis.call('PUBLISH', prefix .. 'drive', 'goal') end
  end
  return 0, string.format('%.0f', now)
end

local verdicts = {}
for i = 2, #ARGV, 7 do
  local verdict, at = judge(i)
  verdicts[#verdicts + 1] = verdict
  verdicts[#verdicts + 1] = tonumber(at)
end
return verdicts
