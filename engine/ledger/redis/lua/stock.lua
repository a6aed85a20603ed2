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

-- What fails first, were the offer granted now: 'stock' -4, 'budget' -5, nil where nothing does; and which line, 0 the
-- pool's, which of STOCK_LIMITS (engine.model) by its place from 1, and how much of it is used.
local function short_of(prefix, tenant, pools, take, subject)
  local pool = take[1]
  if pool then
    local state = pools[pool]
    if not state then state = load_pool(prefix, pool); pools[pool] = state end
    if #state[3] == 0 then
      local leased = 0
      for _, one in ipairs(state[1]) do leased = leased + one[2] - one[1] end
      return -4, 0, 0, leased
    end
  end
  for at, line in ipairs(take[3]) do
    local benefit, cost = line[1], line[2]
    local today = whole(take[2]) .. ':' .. benefit
    local given = redis.call('HMGET', tenant .. 'stock', 'n:' .. benefit, 'f:' .. benefit, 'd:' .. today, 'e:' .. today)
    for k = 1, 4 do given[k] = tonumber(given[k] or 0) end
    if given[1] >= line[3] then return -4, at, 1, given[1] end
    if given[3] >= line[4] then return -4, at, 2, given[3] end
    if given[2] + cost > line[6] then return -5, at, 4, given[2] end
    if given[4] + cost > line[7] then return -5, at, 5, given[4] end
    if line[9] then
      local own = redis.call('HMGET', tenant .. 'z:' .. subject, 'n:' .. benefit, 'f:' .. benefit)
      for k = 1, 2 do own[k] = tonumber(own[k] or 0) end
      if own[1] >= line[5] then return -4, at, 3, own[1] end
      if own[2] + cost > line[8] then return -5, at, 6, own[2] end
    end
  end
end

-- Put back what offers took, where it is missing: rows {offer id, subject, pool or false, number, day, {benefit, cost,
-- counts users, ...}}. `is_known`: the sums have it already.
local function take_again(prefix, tenant, rows, keep_ms, is_known)
  for _, one in ipairs(rows) do
    local id, subject, pool, number, day, lines = unpack(one, 1, 6)
    if redis.call('EXISTS', prefix .. 't:' .. id) == 0 then
      if pool and not is_known then
        local state = load_pool(prefix, pool)
        state[3] = cut(state[3], number, number + 1)
        save_pool(prefix, pool, state)
      end
      write_take(prefix, tenant, id, subject, pool, number, day, lines, keep_ms, not is_known)
    end
  end
end

-- Give back what offers took, or remember that they arrived (lua/settle.lua); what did that is told by the subject's key.
local function settle(prefix, persons, sent, q, tenant)
  local out = {}
  for p = 1, #q, 4 do
    local key, id, act, number = q[p], q[p + 1], q[p + 2], q[p + 3]
    local did = 0
    if key == '' then
      local offer = get_offer(prefix, hex(id))
      if offer and offer[1] then
        key = offer[1] == offer[2] and prefix .. 'u:' .. offer[1] or persons .. offer[2]
      end
    end
    local value = key ~= '' and redis.call('GET', key)
    if value then
      for at = 1, #value, SIZE do
        if value:sub(at, at + 15) == id then
          local g = {struct.unpack(GRANT, value, at)}
          if act == 'd' and not has(g[10], DELIVERED) then
            g[10], did = g[10] + DELIVERED, 1
          elseif act == 'd' then
            did = 2
          elseif act == 'r' and g[5] == 0 and not has(g[10], DELIVERED) then
            g[5], did = number + 1, 1
            give_back(prefix, tenant, hex(id))
            if not has(g[10], WITHHELD) then count_sent(sent, g[6], g[2], -1) end
          elseif act == 'r' and g[5] == number + 1 then
            did = 2  -- asked again: its commit may not know it yet
          end
          if act == 'r' then drop_fallback(prefix, hex(id)) end
          if did == 1 then
            put_grant(key, value, at, g)
          end
          break
        end
      end
    end
    out[#out + 1] = did > 0 and key or ''
  end
  return out
end
