-- Make a wiped or rolled-back shard current again, after its grants are back (F8, F10).
--
-- What was queued may have been claimed and sent before: it is UNKNOWN and never sent.
-- KEYS: 1 meta
-- ARGV: 1 epoch, 2 claims' epoch at least, 3 run id, 4 prefix of the shard, 5 position, 6 now_ms, 7 requests committed,
-- 8 longest, 9 logged, 10 keep_ms, 11 paused scenarios, 12 prefix of the tenant, 13 shard, 14 what the batch under way
-- gave back, as lua/settle.lua has it, 15 what it took of stock, as lua/stock.lua's take_again has it, 16 keep_ms of that,
-- 17 prefix of persons, 18 prefix of deployment counters, 19 token
local prefix = ARGV[4]
local held = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if held > tonumber(ARGV[1]) then return 'fenced' end
if not is_healing(KEYS[1], ARGV[19]) then return 'behind' end
local claims = math.max(tonumber(redis.call('HGET', KEYS[1], 'claims') or 0), tonumber(ARGV[2]))
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'outbox', 0, -1)) do
  local offer = get_offer(prefix, id)
  if offer then
    end_unclaimed(prefix, id, offer, 'unknown', tonumber(ARGV[6]), claims, 'store_lost')
    put_offer(prefix, id, offer, tonumber(ARGV[10]))
    drop_fallback(prefix, id)
  end
end
for _, scenario in ipairs(cmsgpack.unpack(ARGV[11])) do
  redis.call('HSETNX', prefix .. 'p', scenario, ARGV[5])
end
local place = tonumber(redis.call('HGET', KEYS[1], 'place') or 0)
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'claims', claims, 'run', ARGV[3], 'position', ARGV[5], 'now', ARGV[6],
  'asked', ARGV[7], 'longest', ARGV[8], 'logged', ARGV[9], 'place', place)
-- Codes that went back may have been drawn again, so in this order; and with the rest in one act, so that the batch is
-- never found half put back.
settle(prefix, ARGV[17], ARGV[18], cmsgpack.unpack(ARGV[14]), ARGV[12])
take_again(prefix, ARGV[12], cmsgpack.unpack(ARGV[15]), tonumber(ARGV[16]), false)
redis.call('HDEL', KEYS[1], 'healing')
join(ARGV[12], ARGV[3], ARGV[13])
return 'done'
