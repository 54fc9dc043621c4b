-- KEYS[1] prefix. One consistent reading of the privacy ledger: revision, most participations of a
-- device, versions published with a charge, exhausted, clipping norm; versions published at all;
-- committed rounds by charge; charges by reserved round.
local prefix = KEYS[1]
local p = redis.call('HMGET', prefix .. 'privacy', 'revision', 'max_participations', 'published',
  'exhausted', 'clipping_norm')
return {p[1], p[2], p[3], p[4], p[5], redis.call('HGET', prefix .. 'task', 'published'),
  redis.call('HGETALL', prefix .. 'charges'), redis.call('HGETALL', prefix .. 'reserved')}
