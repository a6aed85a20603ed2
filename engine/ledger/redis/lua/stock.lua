-- What there is to give (O3). Counts and money stand twice, over the deployment and by shard: what a shard gave is in
-- its records of the reservations log, so that the sum can be made again.
--
-- {tenant}stock and PREFIXstock, the same fields: n:BENEFIT given, f:BENEFIT fen, d:DAY:BENEFIT and e:DAY:BENEFIT of a day
-- PREFIXstock also: k:POOL, packed {leases {first, end, epoch}, expired, free, returned, last act}, spans {first, end}
-- {tenant}z:SUBJECT: n:BENEFIT, f:BENEFIT; where a benefit has limits per user
-- PREFIXt:OFFER: what an offer took: {subject, pool or false, number, day, {benefit, cost, counts users, ...}}
local DAYS_MS = 3 * 86400000

local function whole(number) return string.format('%.0f', number + 0) end  -- never -0

local function span_of(spans, number)
  for k, span in ipairs(spans) do
    if span[1] <= number and number < span[2] then return k end
  end
end

local function cut(spans, first, last)
  local left = {}
  for _, span in ipairs(spans) do
    if span[2] <= first or span[1] >= last then
      left[#left + 1] = span
    else
      if span[1] < first then left[#left + 1] = {span[1], first} end
      if span[2] > last then left[#left + 1] = {last, span[2]} end
    end
  end
  return left
end

local function add(spans, first, last)
  local joined, placed = {}, false
  for _, span in ipairs(spans) do
    if span[2] < first then
      joined[#joined + 1] = span
    elseif span[1] > last then
      if not placed then joined[#joined + 1] = {first, last}; placed = true end
      joined[#joined + 1] = span
    else
      first, last = math.min(first, span[1]), math.max(last, span[2])
    end
  end
  if not placed then joined[#joined + 1] = {first, last} end
  return joined
end

local function load_pool(prefix, pool)
  local packed = redis.call('HGET', prefix .. 'stock', 'k:' .. pool)
  return packed and cmsgpack.unpack(packed) or {{}, {}, {}, {}, -1}
end

local function save_pool(prefix, pool, state)
  redis.call('HSET', prefix .. 'stock', 'k:' .. pool, cmsgpack.pack(state))
end

local function draw(state)
  local first = state[3][1]
  local number = first[1]
  if number + 1 < first[2] then first[1] = number + 1 else table.remove(state[3], 1) end
  return number
end

local function count_given(prefix, tenant, benefit, day, count, fen)
  local today = whole(day) .. ':' .. benefit
  for _, key in ipairs({prefix .. 'stock', tenant .. 'stock'}) do
    redis.call('HINCRBY', key, 'n:' .. benefit, whole(count))
    redis.call('HINCRBY', key, 'f:' .. benefit, whole(fen))
    local given = redis.call('HINCRBY', key, 'd:' .. today, whole(count))
    redis.call('HINCRBY', key, 'e:' .. today, whole(fen))
    if given == 1 and count == 1 then
      for _, field in ipairs(redis.call('HKEYS', key)) do
        local at, name = field:match('^[de]:(%d+):(.*)$')
        if at and name == benefit and tonumber(at) < day - DAYS_MS then redis.call('HDEL', key, field) end
      end
    end
  end
end

local function count_user(tenant, subject, benefit, count, fen)
  if subject == '' then return end  -- forgotten
  redis.call('HINCRBY', tenant .. 'z:' .. subject, 'n:' .. benefit, whole(count))
  redis.call('HINCRBY', tenant .. 'z:' .. subject, 'f:' .. benefit, whole(fen))
end

-- Write what an offer takes; `totals` false: the sums have it already.
local function write_take(prefix, tenant, id, subject, pool, number, day, lines, keep_ms, totals)
  for k = 1, #lines, 3 do
    if totals then count_given(prefix, tenant, lines[k], day, 1, lines[k + 1]) end
    if lines[k + 2] then count_user(tenant, subject, lines[k], 1, lines[k + 1]) end
  end
  redis.call('SET', prefix .. 't:' .. id, cmsgpack.pack({subject, pool, number, day, lines}), 'PX', keep_ms)
end

-- Give back what an offer took; harmless where it took nothing or gave it back. `user_only`: the sums have that already.
local function give_back(prefix, tenant, id, user_only)
  local packed = redis.call('GET', prefix .. 't:' .. id)
  if not packed then return end
  redis.call('DEL', prefix .. 't:' .. id)
  local subject, pool, number, day, lines = unpack(cmsgpack.unpack(packed), 1, 5)
  for k = 1, #lines, 3 do
    if not user_only then count_given(prefix, tenant, lines[k], day, -1, -lines[k + 1]) end
    if lines[k + 2] then count_user(tenant, subject, lines[k], -1, -lines[k + 1]) end
  end
  if pool and not user_only then
    local state = load_pool(prefix, pool)
    local to = span_of(state[2], number) and 4 or 3
    state[to] = add(state[to], number, number + 1)
    save_pool(prefix, pool, state)
  end
end

-- Which check fails first, were the offer granted now: 'stock' -4, 'budget' -5; nil where none does.
local function short_of(prefix, tenant, pools, take, subject)
  local pool = take[1]
  if pool then
    local state = pools[pool]
    if not state then state = load_pool(prefix, pool); pools[pool] = state end
    if #state[3] == 0 then return -4 end
  end
  for _, line in ipairs(take[3]) do
    local benefit, cost = line[1], line[2]
    local today = whole(take[2]) .. ':' .. benefit
    local given = redis.call('HMGET', tenant .. 'stock', 'n:' .. benefit, 'f:' .. benefit, 'd:' .. today, 'e:' .. today)
    for k = 1, 4 do given[k] = tonumber(given[k] or 0) end
    if given[1] >= line[3] or given[3] >= line[4] then return -4 end
    if given[2] + cost > line[6] or given[4] + cost > line[7] then return -5 end
    if line[9] then
      local own = redis.call('HMGET', tenant .. 'z:' .. subject, 'n:' .. benefit, 'f:' .. benefit)
      if tonumber(own[1] or 0) >= line[5] then return -4 end
      if tonumber(own[2] or 0) + cost > line[8] then return -5 end
    end
  end
end
