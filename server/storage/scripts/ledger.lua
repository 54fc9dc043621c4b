-- KEYS[1] prefix. One consistent reading of the privacy ledger: revision, most participations of a
-- device, versions published with a charge, exhausted; versions published at all; committed rounds by
-- charge; charges by reserved round; the current model's JSON, which has the clipping norm.
local prefix = KEYS[1]
local p = redis.call('HMGET', prefix .. 'privacy', 'revision', 'max_participations', 'published',
  'exhausted')
local current = redis.call('HGET', prefix .. 'task', 'current')
return {p[1], p[2], p[3], p[4], redis.call('HGET', prefix .. 'task', 'published'),
  redis.call('HGETALL', prefix .. 'charges'), redis.call('HGETALL', prefix .. 'reserved'),
  current and redis.call('HGET', prefix .. 'models', current)}
