-- Needs _common. Keep count of what stands in sequences, so that nobody has to go through them; and put
-- a message in line.
--
-- cq:counts:<queue>  HASH, of all its sequences: b messages behind the first, or behind what is held, of
--   those that are ready or held; x messages held behind the first; l sequences that wait for their
--   time, lb messages behind their heads; d sequences behind a dead letter, db messages behind it;
--   at ms at which the count began that these continue, missing before the first
-- cq:old_until  STRING ms until which consumers may be there that keep no counts; see upkeep.lua
-- cq:recount:<queue>  HASH a count that is under way: cursor, at, and what it has found so far
-- cq:recounted:<queue>  SET the sequences that it has seen
--
-- A sequence of one message that nobody retries or buries changes none of these, and a script writes
-- each field that did change once per queue, last of all. Processes of a release before 2 keep no counts:
-- - While a consumer of theirs is there, nobody relies on the counts; all sequences are gone through, as
--   that release does. So is it until a count that began after the last of them.
-- - Their senders are not seen. What they put behind another message is missing from the counts until
--   upkeep has counted anew, about every ten minutes; see recount.lua.
-- Without sequences all counts are 0, whatever they were.

local FIELDS = {'b', 'x', 'l', 'lb', 'd', 'db'}
-- Added to each field while a queue is counted anew: whoever changes one sees it in the answer.
local ANEW = 2 ^ 48
-- Sequences from which on it takes long to go through them.
local MANY = 1000

local changes = {} -- queue -> sequence -> field -> by how much; or what it was, under "before"

local function change_of(queue, seq)
  local of = changes[queue]
  if not of then
    of = {}
    changes[queue] = of
  end
  local one = of[seq]
  if not one then
    one = {}
    of[seq] = one
  end
  return one
end

-- What a sequence adds to the counts in a state and with a length.
local function part(state, length)
  local kind, n = string.sub(state, 1, 1), string.match(state, '^h%d+|(%d+)|')
  if kind == 'l' then return {l = 1, lb = math.max(0, length - 1)} end
  if kind == 'd' then return {d = 1, db = math.max(0, length - 1)} end
  n = tonumber(n) or 1
  return {b = math.max(0, length - n), x = n - 1}
end

local function present_part(queue, seq)
  local state = call('HGET', C .. 'seqs:' .. queue, seq)
  return state and part(state, call('LLEN', seq_key(queue, seq))) or {}
end

-- Note a change that the caller knows.
local function note(queue, seq, field, by)
  if by == 0 then return end
  local one = change_of(queue, seq)
  if not one.before then one[field] = (one[field] or 0) + by end
end

-- Note that a sequence will be changed, however: it is looked at now and at the end. 4 commands.
local function note_all(queue, seq)
  local one = change_of(queue, seq)
  if not one.before then one.before = present_part(queue, seq) end
end

-- Tell a count that is under way what was changed.
local function tell_recount(queue, of)
  for seq, one in pairs(of) do
    local by = one
    if next(one) and call('SADD', C .. 'recounted:' .. queue, seq) == 1 then by = present_part(queue, seq) end
    for _, field in ipairs(FIELDS) do
      if (by[field] or 0) ~= 0 then call('HINCRBY', C .. 'recount:' .. queue, field, by[field]) end
    end
  end
end

-- Write what was noted; each script that notes anything ends with it.
local function save_counts()
  for queue, of in pairs(changes) do
    local sums, is_anew = {}, false
    for seq, one in pairs(of) do
      if one.before then
        local before, now = one.before, present_part(queue, seq)
        one.before = nil
        for _, field in ipairs(FIELDS) do
          local by = (now[field] or 0) - (before[field] or 0)
          if by ~= 0 then one[field] = (one[field] or 0) + by end
        end
      end
      for field, by in pairs(one) do sums[field] = (sums[field] or 0) + by end
    end
    for field, by in pairs(sums) do
      if call('HINCRBY', C .. 'counts:' .. queue, field, by) >= ANEW / 2 then is_anew = true end
    end
    if is_anew then tell_recount(queue, of) end
  end
  changes = {}
end

-- Go through all sequences of a queue.
local function scan(queue)
  local found = {b = 0, x = 0, l = 0, lb = 0, d = 0, db = 0}
  local states = call('HGETALL', C .. 'seqs:' .. queue)
  for i = 1, #states, 2 do
    local one = part(states[i + 1], call('LLEN', seq_key(queue, states[i])))
    for field, n in pairs(one) do found[field] = found[field] + n end
  end
  return found
end

-- Keep what was found as the counts of a queue; pcall, since to count must not fail on a full server.
local function keep_counts(queue, found, at)
  local fields = {'at', string.format('%.0f', at)}
  for _, field in ipairs(FIELDS) do
    fields[#fields + 1] = field
    fields[#fields + 1] = string.format('%.0f', found[field])
  end
  local kept = redis.pcall('HSET', C .. 'counts:' .. queue, unpack(fields))
  if type(kept) ~= 'number' then return end
  call('DEL', C .. 'recount:' .. queue)
  -- pcall: rules for a user's rights that are of an older release don't name it.
  local freed = redis.pcall('UNLINK', C .. 'recounted:' .. queue)
  if type(freed) ~= 'number' then call('DEL', C .. 'recounted:' .. queue) end
end

-- Return the counts of a queue, with the number of its sequences under "all"; 3 commands, unless they
-- can't be relied on. Then what is found is kept; by those who only look, where it took long to find.
local function counts_of(queue, may_keep)
  local all = call('HLEN', C .. 'seqs:' .. queue)
  local kept = call('HMGET', C .. 'counts:' .. queue, 'at', unpack(FIELDS))
  local old_until = tonumber(call('GET', C .. 'old_until') or 0)
  local found, is_off = {all = all}, false
  for i, field in ipairs(FIELDS) do
    local n = tonumber(kept[i + 1] or 0)
    found[field] = n >= ANEW / 2 and n - ANEW or n
    is_off = is_off or found[field] < 0 or all == 0 and found[field] ~= 0
  end
  if is_off or all > 0 and not (kept[1] and tonumber(kept[1]) > old_until) then
    found = scan(queue)
    found.all = all
    if (may_keep or all >= MANY) and now_ms() > old_until then keep_counts(queue, found, now_ms()) end
  end
  return found
end

-- Put a stored message in line: into its queue, or behind the others of its sequence.
local function enqueue(id, queue, pri, seq)
  if seq == '' then return push_ready(queue, pri, id) end
  local length, seqs = call('LPUSH', seq_key(queue, seq), id), C .. 'seqs:' .. queue
  local state = length > 1 and call('HGET', seqs, seq)
  if state then
    local kind = string.sub(state, 1, 1)
    return note(queue, seq, (kind == 'l' or kind == 'd') and kind .. 'b' or 'b', 1)
  end
  note(queue, seq, 'b', length - 1)
  if call('HSETNX', seqs, seq, 'r' .. pri) == 1 then push_ready(queue, pri, '=' .. seq) end
end
