--!include _common _counts _settle _letters
-- Give back a slice of what remainders hold (see end_consumers), each message once and to its old place.
-- What may have been running counts a delivery; one delivered too often becomes a dead letter. Two may
-- work on one remainder: what is not there any more was given back by the other.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 most deliveries without a settlement (0: no limit)   3 the letter's text
--       4… units, in the order in which they are put back, so that what comes first in its queue is last:
--       its remainder, "1" if it counts a delivery, how many messages, their ids. A unit is a plain
--       message, or all that is held of a sequence; it is given back whole
-- RETURN  {remainder, messages given back, dead letters, …} three entries a remainder
-- COST  O(messages in the slice), up to 10 commands a sequence, 3 per plain message that counts, 5
--       otherwise for each remainder and queue
local most, why, now = tonumber(ARGV[2]), ARGV[3], now_ms()
local units, ids_of, names = {}, {}, {}

local i = 4
while i <= #ARGV do
  local name, last = ARGV[i], i + 2 + tonumber(ARGV[i + 2])
  local unit = {name = name, counts = ARGV[i + 1] == '1', ids = {}}
  if not ids_of[name] then
    ids_of[name] = {}
    names[#names + 1] = name
  end
  for at = i + 3, last do
    unit.ids[#unit.ids + 1] = ARGV[at]
    table.insert(ids_of[name], ARGV[at])
  end
  units[#units + 1] = unit
  i = last + 1
end

local entries, messages, letters = {}, {}, {}
for _, name in ipairs(names) do
  local flight, mine, count = C .. 'flight:' .. name, {}, 0
  for at, entry in ipairs(call_with('HMGET', flight, ids_of[name])) do
    if entry then
      mine[ids_of[name][at]] = entry
      count = count + 1
    end
  end
  call_with('HDEL', flight, ids_of[name])
  entries[name], messages[name], letters[name] = mine, count, 0
end

-- Count a delivery that may have been running, and say whether it was one too many.
local function is_worn_out(unit, id)
  if not unit.counts then return false end
  local tries = call('HINCRBY', C .. 'tries', id, 1)
  return most > 0 and tries % LETTER >= most
end

local function bury_of(unit, id, queue, pri, seq)
  bury(id, queue, pri, seq, now, call('HGET', C .. 'tries', id), why)
  letters[unit.name] = letters[unit.name] + 1
end

local function recover_sequence(unit, queue, pri, seq)
  -- The list, not the numbers, says which one stands first.
  local first = call('LINDEX', seq_key(queue, seq), -1)
  if not first then return end
  note_all(queue, seq)
  if not is_worn_out(unit, first) then return free_sequence(queue, seq, pri, true) end
  bury_of(unit, first, queue, pri, seq)
  if blocks(queue) then
    call('HSET', C .. 'seqs:' .. queue, seq, 'd' .. pri)
  else
    call('LREM', seq_key(queue, seq), -1, first)
    free_sequence(queue, seq, pri, true)
  end
end

local back = {}
for _, unit in ipairs(units) do
  local id = unit.ids[1]
  local entry = entries[unit.name][id]
  if entry then
    local pri, queue, seq = string.match(entry, '^%d+|(%d+)|%d*!?|([^\31]*)\31(.*)$')
    if seq ~= '' then
      recover_sequence(unit, queue, pri, seq)
    elseif is_worn_out(unit, id) then
      bury_of(unit, id, queue, pri, '')
    else
      local place = pri .. '|' .. queue
      back[place] = back[place] or {}
      table.insert(back[place], id)
    end
  end
end
for place, list in pairs(back) do
  local pri, queue = string.match(place, '^(%d+)|(.*)$')
  put_back(queue, pri, list)
end

local result = {}
for _, name in ipairs(names) do
  if call('EXISTS', C .. 'flight:' .. name) == 0 then
    call('ZREM', C .. 'consumers', name)
    call('HDEL', C .. 'about', name)
  end
  result[#result + 1] = name
  result[#result + 1] = messages[name]
  result[#result + 1] = letters[name]
end
save_counts()
return result
