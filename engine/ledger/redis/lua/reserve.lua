-- Grant each request on its first option whose rules all pass (C1-C3); all rules are checked before anything is written.
--
-- A request has a number, its place among all requests of the shard's log. It sees what lower numbers wrote, whatever
-- came later: so a request asked again, after a lost reply or in a replay, gets the answer it got before.
--
-- KEYS: 1 meta, 2 grants not yet committed, 3... subjects
-- ARGV: 4 shard, 5 keep_ms, 6 horizon_ms, 7 prefix of deployment counters, 8 prefix of codes, 9 columns of integers (see
-- below), 10 offer ids of 16 bytes, 11-13 a byte per option: counts, withheld, shadow; 14 a byte per rule: its scope, and
-- 15 whether uncounted grants are seen too; 16 prefix of the shard, 17 of the tenant, 18 packed {per option: its take or
-- 0, takes {pool or false, day, lines}} or '', 19 how many shards share what is asked about, 0 none does, 20 requests
-- committed, 21 whether a rule has no window, 22 name of this call, and 23 of the one that must have come before, '' where
-- there is none
-- Answer: packed {per request: granted or -1, is a duplicate, per option tried before: its rule, -3 granted before, -4 no
-- stock, -5 no money} and
-- {request, code ...}, subjects of cacheable requests that were refused, how many bytes of the second answer are the
-- grants of each, and of options that stock refuses {place in the first list from 0, line, limit, used ...}
local LACKS_KEPT = 65536
local refusal = guard(KEYS[1])
if refusal then return refusal end
-- What others gave counts too: after Redis lost something all shards must be whole first (F8, F10).
if ARGV[19] ~= '0' then
  if redis.call('HGET', ARGV[17] .. 'r', 'run') ~= ARGV[3] then return 'others' end
  if redis.call('HLEN', ARGV[17] .. 'r') <= tonumber(ARGV[19]) then return 'others' end
end
-- Calls are sent together, and one of them may have been refused that is not any more (a script that was not there yet, a
-- replica that was away): what comes behind it would not see its grants, and grants too much.
if ARGV[23] ~= '' and redis.call('HGET', KEYS[1], 'call') ~= ARGV[23] then return 'early' end
local me, keep_ms, horizon_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local q = cmsgpack.unpack(ARGV[9])
-- per request: subject, now_ms, number, whether it may be remembered, options; per option: row of the marks, rules, code
-- or false; per rule: since_ms, most; then the marks, four numbers each
local subject_of, now_of, number_of, cacheable_of, options_of = q[1], q[2], q[3], q[4], q[5]
local mark_of, rules_of, code_of, since_of, most_of, marks = q[6], q[7], q[8], q[9], q[10], q[11]
local subject_names = q[12]
local ids, counts, withhelds, shadows, scopes, wides = ARGV[10], ARGV[11], ARGV[12], ARGV[13], ARGV[14], ARGV[15]
local take_of, takes, pools, asked_before = nil, nil, {}, tonumber(ARGV[20])
if ARGV[18] ~= '' then take_of, takes = unpack(cmsgpack.unpack(ARGV[18])) end
local unpack_grant, pack_grant, band, floor = struct.unpack, struct.pack, bit.band, math.floor
local subjects = #KEYS - 2
local values = {}
for first = 1, subjects, 4000 do
  local last = math.min(first + 3999, subjects)
  local found = redis.call('MGET', unpack(KEYS, first + 2, last + 2))
  for k = 1, #found do values[first + k - 1] = found[k] end
end
local states, changed, opened, sent, adding = {}, {}, {}, {}, {}
local opened_n = 0
-- As a text once: Redis writes a number with 17 digits at every call.
local kept_for = whole(keep_ms + horizon_ms)
local asks_everybody, has_endless = scopes:find('\5', 1, true) ~= nil, ARGV[21] == '1'

local function load(subject)
  local state, value = {}, values[subject]
  if value then
    for at = 1, #value, SIZE do
      state[#state + 1] = {unpack_grant(GRANT, value, at)}
    end
  end
  states[subject] = state
  return state
end

local function sent_since(scenario, since_ms, now_ms)
  local minutes = sent[scenario]
  if not minutes then
    minutes = {newest = 0}
    local found = redis.call('HGETALL', ARGV[7] .. scenario)
    for k = 1, #found, 2 do
      local minute = tonumber(found[k])
      minutes[minute] = tonumber(found[k + 1])
      minutes.newest = math.max(minutes.newest, minute)
    end
    for minute, change in pairs(adding[scenario] or {}) do
      minutes[minute] = (minutes[minute] or 0) + change
      minutes.newest = math.max(minutes.newest, minute)
    end
    sent[scenario] = minutes
  end
  local total = 0
  local first = math.max(floor((since_ms + 1) / MINUTE_MS), minutes.newest - MINUTES + 1)
  for minute = first, math.min(minutes.newest, floor(now_ms / MINUTE_MS)) do
    total = total + (minutes[minute] or 0)
  end
  return total
end

-- Whether rule r of an option with this mark refuses: `most` grants of its scope lie after since_ms, as request `number`
-- sees them.
local function refuses(grants, number, now_ms, r, mark, withheld)
  local since_ms, scope, uncounted_too = since_of[r], scopes:byte(r), wides:byte(r) == 1
  if scope == 5 then return sent_since(marks[mark], since_ms, now_ms) >= most_of[r] end
  local found = 0
  for k = 1, #grants do
    local g = grants[k]
    local mine = g[4] == me
    if g[2] > since_ms and (not mine or g[3] < number) and (g[5] == 0 or (mine and g[5] > number + 1)) then
      local flags = g[10]
      if (uncounted_too or (band(flags, COUNTS) ~= 0 and (withheld or band(flags, WITHHELD) == 0)))
        and (scope == 0 or (scope == 1 and g[9] == marks[mark + 3]) or (scope == 2 and g[6] == marks[mark])
          or (scope == 3 and g[7] == marks[mark + 1]) or (scope == 4 and g[8] == marks[mark + 2])) then
        found = found + 1
      end
    end
  end
  return found >= most_of[r]
end

local out, codes, refused, shorts = {}, {}, {}, {}
local n, o, r = 0, 1, 1

-- Which of a request's options were granted before: by itself (a repetition), by an earlier request, or by a later one.
local function known(grants, number, now_ms, options)
  local again, repeated, later, gone = -1, -1, nil, false
  for k = 0, options - 1 do
    local id = ids:sub((o + k) * 16 - 15, (o + k) * 16)
    for j = 1, #grants do
      local g = grants[j]
      if g[1] == id then
        if g[4] == me and g[3] == number then
          again = k
        elseif g[4] == me and g[3] > number then
          later = g
        elseif repeated < 0 and g[2] > now_ms - horizon_ms then
          repeated, gone = k, g[5] ~= 0
        end
      end
    end
  end
  return again, repeated, later, gone
end

local function tell_code(row, id, gone)
  local stored = redis.call('GET', ARGV[8] .. hex(id))
  if stored and not (gone and stored:find('#', 1, true)) then
    codes[#codes + 1] = row
    codes[#codes + 1] = stored
  end
end

-- What stock lacked is remembered by number, so that a replay says it again (T3); of the newest refusals.
local lacks_key, lacked, noted_row = ARGV[16] .. 'y', false, 0

local function note_lack(number, k, short, line, limit, used)
  redis.call('ZADD', lacks_key, number, table.concat({whole(number), k, short, line, limit, whole(used)}, ':'))
  lacked = true
end

local function noted_lack(number, k)
  for _, told in ipairs(redis.call('ZRANGEBYSCORE', lacks_key, number, number)) do
    local at, short, line, limit, used = told:match('^%d+:(%d+):(-%d+):(%d+):(%d+):(-?%d+)$')
    if tonumber(at) == k then return tonumber(short), tonumber(line), tonumber(limit), tonumber(used) end
  end
end

-- Take of stock what the option says, and tell the code.
local function take_of_stock(row, subject, id)
  local take = take_of and takes[take_of[o]]
  if not take or withhelds:byte(o) == 1 then return end
  local pool, number, lines = take[1], -1, {}
  if pool then
    number = draw(pools[pool])
    save_pool(ARGV[16], pool, pools[pool])
    code_of[o] = pool .. '#' .. whole(number)
    codes[#codes + 1] = row
    codes[#codes + 1] = code_of[o]
  end
  for _, line in ipairs(take[3]) do
    lines[#lines + 1], lines[#lines + 2], lines[#lines + 3] = line[1], line[2], line[9]
  end
  write_take(ARGV[16], ARGV[17], hex(id), subject, pool, number, take[2], lines, 2 * horizon_ms, true)
end

local function grant(subject, grants, later, now_ms, number, id, mark, keep)
  local is_withheld = withhelds:byte(o) == 1
  local flags = counts:byte(o) * COUNTS + (is_withheld and WITHHELD or 0) + keep
  local scenario = marks[mark]
  if later and later[1] == id then
    later[3], later[2] = number, now_ms
  else
    grants[#grants + 1] = {id, now_ms, number, me, 0, scenario, marks[mark + 1], marks[mark + 2], marks[mark + 3], flags}
    local m = opened_n
    opened[m + 1], opened[m + 2], opened[m + 3], opened[m + 4] =
      KEYS[subject + 2], id, is_withheld and -1 or scenario, now_ms
    opened_n = m + 4
    if not is_withheld then
      local minute = floor(now_ms / MINUTE_MS)
      local added = adding[scenario]
      if not added then added = {}; adding[scenario] = added end
      added[minute] = (added[minute] or 0) + 1
      local minutes = sent[scenario]
      if minutes then
        minutes[minute] = (minutes[minute] or 0) + 1
        minutes.newest = math.max(minutes.newest, minute)
      end
    end
  end
  changed[subject] = true
  if code_of[o] then redis.call('SET', ARGV[8] .. hex(id), code_of[o], 'PX', 2 * horizon_ms) end
end

for row = 1, #subject_of do
  local subject, now_ms, number, options = subject_of[row], now_of[row], number_of[row], options_of[row]
  local grants = states[subject] or load(subject)
  local again, repeated, later, gone = -1, -1, nil, false
  if #grants > 0 then again, repeated, later, gone = known(grants, number, now_ms, options) end
  local granted_at = n + 1
  out[n + 1], out[n + 2] = -1, 0
  n = n + 2
  local chosen = -1
  for k = 0, options - 1 do
    local rules = rules_of[o]
    if chosen < 0 then
      if repeated >= 0 then
        if k == repeated then
          chosen = k
          out[granted_at + 1] = 1
          tell_code(row - 1, ids:sub(o * 16 - 15, o * 16), gone)
        else
          n = n + 1
          out[n] = -3
        end
      elseif again < 0 and asked_before >= HISTORY and number < asked_before then
        -- Decided before this shard was made of others (engine.ledger.redis.rekey).
        n = n + 1
        out[n] = -3
      elseif k == again then
        chosen = k
        tell_code(row - 1, ids:sub(o * 16 - 15, o * 16))
      else
        local failed, keep, withheld = -1, 0, withhelds:byte(o) == 1
        local take = take_of and takes[take_of[o]]
        local is_past = number < asked_before and shadows:byte(o) == 0
        local short, line, limit, used
        if take and is_past then short, line, limit, used = noted_lack(number, k) end
        if take and not short then
          short, line, limit, used = short_of(ARGV[16], ARGV[17], pools, take, subject_names[row])
          if is_past then
            line = nil  -- of today
          elseif short and shadows:byte(o) == 0 then
            if noted_row ~= row then redis.call('ZREMRANGEBYSCORE', lacks_key, number, number) end
            noted_row = row
            note_lack(number, k, short, line, limit, used)
          end
        end
        local has_to_look = #grants > 0 or asks_everybody or has_endless
        for rule = 0, has_to_look and rules - 1 or -1 do
          if since_of[r + rule] <= 0 then keep = KEEP end
          if failed < 0 and (#grants > 0 or (asks_everybody and scopes:byte(r + rule) == 5))
            and refuses(grants, number, now_ms, r + rule, mark_of[o], withheld) then
            failed = rule
          end
        end
        -- What was refused once for want of stock is refused again in a replay, whatever came back since.
        if take and not short and failed < 0 and is_past then short = -4 end
        if short then failed = short end
        if failed ~= -1 then
          n = n + 1
          out[n] = failed
          if line then
            local s = #shorts
            shorts[s + 1], shorts[s + 2], shorts[s + 3], shorts[s + 4] = n - 1, line, limit, used
          end
        else
          chosen = k
          if shadows:byte(o) == 0 then
            local id = ids:sub(o * 16 - 15, o * 16)
            if later and later[1] == id then
              tell_code(row - 1, id)
            else
              take_of_stock(row - 1, subject_names[row], id)
            end
            grant(subject, grants, later, now_ms, number, id, mark_of[o], keep)
          end
        end
      end
    end
    o, r = o + 1, r + rules
  end
  out[granted_at] = chosen
  if chosen < 0 and cacheable_of[row] == 1 then refused[#refused + 1] = subject end
end

for scenario, minutes in pairs(adding) do
  for minute, change in pairs(minutes) do count_sent(ARGV[7], scenario, minute * MINUTE_MS, change) end
end
for subject in pairs(changed) do
  local grants, parts, kept = states[subject], {}, false
  local newest_ms = 0
  for k = 1, #grants do newest_ms = math.max(newest_ms, grants[k][2]) end
  for k = 1, #grants do
    local g = grants[k]
    local keeps = band(g[10], KEEP) ~= 0
    if g[2] > newest_ms - horizon_ms or ((keeps or g[2] > newest_ms - keep_ms) and g[5] == 0) then
      kept = kept or keeps
      parts[#parts + 1] = pack_grant(GRANT, g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10])
    end
  end
  if kept then
    redis.call('SET', KEYS[subject + 2], table.concat(parts))
  else
    redis.call('SET', KEYS[subject + 2], table.concat(parts), 'PX', kept_for)
  end
end
if lacked then
  redis.call('ZREMRANGEBYRANK', lacks_key, 0, -LACKS_KEPT - 1)
  redis.call('PEXPIRE', lacks_key, horizon_ms)
end
if ARGV[22] ~= '' then redis.call('HSET', KEYS[1], 'call', ARGV[22]) end
if opened_n > 0 then redis.call('RPUSH', KEYS[2], cmsgpack.pack(opened)) end
local subjects_kept, kept_bytes, parts = {}, {}, {}
for _, subject in ipairs(refused) do
  if not changed[subject] then
    local value = values[subject] or ''
    subjects_kept[#subjects_kept + 1], kept_bytes[#kept_bytes + 1], parts[#parts + 1] = subject, #value, value
  end
end
return {cmsgpack.pack({out, codes, subjects_kept, kept_bytes, shorts}), table.concat(parts)}
