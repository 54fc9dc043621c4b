-- KEYS[1] prefix. ARGV: version. Makes a published version current. Returns its JSON, or nothing.
local model = redis.call('HGET', KEYS[1] .. 'models', ARGV[1])
if not model then return false end
redis.call('HSET', KEYS[1] .. 'task', 'current', ARGV[1])
redis.call('PUBLISH', KEYS[1] .. 'events', 'rollback')
return model
