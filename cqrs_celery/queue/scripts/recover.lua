--!include _common _settle _letters
-- Give back everything that consumers whose lease has ended still hold, each message once.
--
-- Messages return to their old places. Only a message that may have been running counts a delivery: of a
-- sequence, the first in flight, and of a consumer that runs `slots` messages at once, only what is among
-- its oldest `slots` deliveries. One delivered too often becomes a dead letter.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 most deliveries without a settlement (0: no limit)   3 the letter's text
--       4 "" for every consumer whose lease has ended, else the name of one that leaves: its messages
--         return at once and count no delivery
-- RETURN  {consumer, messages given back, dead letters, …} three entries a consumer, at most 10 consumers
-- COST  O(n log n) for n messages held
local now = now_ms()
local most, why, leaver = tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- Count a delivery that may have been running, and say whether it was one too many.
local function is_worn_out(id)
  local tries = call('HINCRBY', C .. 'tries', id, 1)
  return most > 0 and tries % LETTER >= most
end

local function recover_sequence(queue, seq, pri, first, may_have_run, letters)
  if not (may_have_run and is_worn_out(first)) then return free_sequence(queue, seq, pri, true) end
  bury(first, queue, pri, seq, now, call('HGET', C .. 'tries', first), why)
  letters[#letters + 1] = first
  if blocks(queue) then
    call('HSET', C .. 'seqs:' .. queue, seq, 'd' .. pri)
  else
    call('LREM', seq_key(queue, seq), -1, first)
    free_sequence(queue, seq, pri, true)
  end
end

local function deregister(consumer)
  call('ZREM', C .. 'consumers', consumer)
  for _, set in ipairs({'idle', 'callable', 'busy'}) do call('SREM', C .. set, consumer) end
  for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
    call('SREM', C .. 'consuming:' .. queue, consumer)
    call('SREM', C .. 'idle:' .. queue, consumer)
  end
  call('DEL', C .. 'queues_of:' .. consumer)
  call('HDEL', C .. 'about', consumer)
end

local function read(consumer)
  local entries, held = call('HGETALL', C .. 'flight:' .. consumer), {}
  for i = 1, #entries, 2 do
    local fence, pri, queue, seq =
      string.match(entries[i + 1], '^(%d+)|(%d+)|%d*!?|([^\31]*)\31(.*)$')
    held[#held + 1] = {id = entries[i], fence = tonumber(fence), pri = pri, queue = queue, seq = seq}
  end
  return held
end

-- Return plain messages, and of each sequence what is held of it, as what can be running by itself.
local function group(held)
  local units, sequences = {}, {}
  for _, m in ipairs(held) do
    local name = m.queue .. '\31' .. m.seq
    local unit = m.seq ~= '' and sequences[name]
    if not unit then
      unit = {queue = m.queue, pri = m.pri, seq = m.seq, id = m.id, fences = {}, count = 0}
      units[#units + 1] = unit
      if m.seq ~= '' then sequences[name] = unit end
    end
    unit.fences[m.id] = m.fence
    unit.count = unit.count + 1
  end
  for _, unit in ipairs(units) do
    -- The list, not the numbers, says which one stands first.
    if unit.seq ~= '' then unit.id = call('LINDEX', seq_key(unit.queue, unit.seq), -1) or unit.id end
    unit.fence = unit.fences[unit.id] or 0
  end
  return units
end

-- Mark what may have been running: what surely was among the oldest `slots` deliveries. What was never
-- delivered before goes into a batch with others of its queue, and they are running together or not at
-- all. Behind another one of its sequence (an odd fence) a message is delivered at a time that is not
-- known here, so only where everything fits is it surely among them.
local function mark(units, about)
  local slots = tonumber(about.slots) or 0
  local sizes = type(about.batches) == 'table' and about.batches or {}
  local deliveries, batches, total = {}, {}, 0
  for _, unit in ipairs(units) do
    local size = tonumber(sizes[unit.queue]) or 1
    if size > 1 and not call('HGET', C .. 'tries', unit.id) then
      local batch = batches[unit.queue]
      if not batch then
        batch = {fence = unit.fence, units = {}, count = 0, size = size}
        batches[unit.queue] = batch
        deliveries[#deliveries + 1] = batch
      end
      batch.fence = math.min(batch.fence, unit.fence)
      batch.count = batch.count + unit.count
      table.insert(batch.units, unit)
    else
      deliveries[#deliveries + 1] = {fence = unit.fence, units = {unit}, count = 1, size = 1}
    end
  end
  for _, delivery in ipairs(deliveries) do total = total + math.ceil(delivery.count / delivery.size) end
  table.sort(deliveries, function(a, b) return a.fence < b.fence end)
  local before = 0
  for _, delivery in ipairs(deliveries) do
    local is_sure = delivery.fence % 2 == 0 and before < slots or total <= slots
    for _, unit in ipairs(delivery.units) do unit.may_have_run = slots == 0 or is_sure end
    before = before + math.ceil(delivery.count / delivery.size)
  end
end

local function about(consumer)
  local known, result = pcall(cjson.decode, call('HGET', C .. 'about', consumer) or '{}')
  return known and type(result) == 'table' and result or {}
end

local function recover(consumer, known)
  local held, back, order, letters = read(consumer), {}, {}, {}
  call('DEL', C .. 'flight:' .. consumer)
  local units = group(held)
  if leaver == '' then mark(units, known) end
  for _, unit in ipairs(units) do
    if unit.seq ~= '' then
      order[#order + 1] = unit
    elseif unit.may_have_run and is_worn_out(unit.id) then
      bury(unit.id, unit.queue, unit.pri, '', now, call('HGET', C .. 'tries', unit.id), why)
      letters[#letters + 1] = unit.id
    else
      local place = unit.pri .. '|' .. unit.queue
      back[place] = back[place] or {}
      table.insert(back[place], unit.id)
    end
  end
  table.sort(order, function(a, b) return tonumber(a.id) > tonumber(b.id) end)
  for _, unit in ipairs(order) do
    if call('EXISTS', seq_key(unit.queue, unit.seq)) == 1 then
      recover_sequence(unit.queue, unit.seq, unit.pri, unit.id, unit.may_have_run, letters)
    end
  end
  for place, list in pairs(back) do
    local pri, queue = string.match(place, '^(%d+)|(.*)$')
    put_back(queue, pri, list)
  end
  return #held, #letters
end

local who = {leaver}
if leaver == '' then
  who = call('ZRANGEBYSCORE', C .. 'consumers', '-inf', '(' .. now, 'LIMIT', 0, 10)
end
-- All of them first, so that what one gives back wakes none of the others.
local known, result = {}, {}
for i, consumer in ipairs(who) do
  known[i] = about(consumer)
  deregister(consumer)
end
for i, consumer in ipairs(who) do
  local count, letters = recover(consumer, known[i])
  result[#result + 1] = consumer
  result[#result + 1] = count
  result[#result + 1] = letters
end
return result
