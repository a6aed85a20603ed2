-- Number names for grants, the same for every process.   KEYS: 1 names   ARGV: kind, name, kind, name ...
local out = {}
for k = 1, #ARGV, 2 do
  local field = ARGV[k] .. ':' .. ARGV[k + 1]
  local number = redis.call('HGET', KEYS[1], field)
  if not number then
    number = redis.call('HINCRBY', KEYS[1], '#' .. ARGV[k], 1)
    redis.call('HSET', KEYS[1], field, number)
  end
  out[#out + 1] = tonumber(number)
end
return cmsgpack.pack(out)
