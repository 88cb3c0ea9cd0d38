--!include _common _settle _letters
-- Give back everything that consumers whose lease has ended still hold, each message once.
--
-- Messages return to their old places. Only a message that may have been running counts a delivery:
-- of a sequence, the first in flight. One delivered too often becomes a dead letter.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 most deliveries without a settlement (0: no limit)   3 the letter's text
--       4 "" for every consumer whose lease has ended, else the name of one that leaves: its messages
--         return at once and count no delivery
-- RETURN  {consumer, messages given back, dead letters, …} three entries a consumer, at most 10 consumers
-- COST  O(messages held)
local now = now_ms()
local most, why, leaver = tonumber(ARGV[2]), ARGV[3], ARGV[4]

local function is_worn_out(id)
  if leaver ~= '' then return false end
  local tries = call('HINCRBY', C .. 'tries', id, 1)
  return most > 0 and tries % LETTER >= most
end

local function recover_sequence(queue, seq, pri, first, letters)
  local dead = is_worn_out(first)
  if not dead then return free_sequence(queue, seq, pri, true) end
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
  call('SREM', C .. 'idle', consumer)
  for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
    call('SREM', C .. 'consuming:' .. queue, consumer)
  end
  call('DEL', C .. 'queues_of:' .. consumer)
end

local function recover(consumer)
  local flight = C .. 'flight:' .. consumer
  local entries, back, order, letters = call('HGETALL', flight), {}, {}, {}
  local seen = {}
  call('DEL', flight)
  for i = 1, #entries, 2 do
    local id = entries[i]
    local pri, queue, seq = string.match(entries[i + 1], '^%d+|(%d+)|%d*!?|([^\31]*)\31(.*)$')
    if seq == '' then
      if is_worn_out(id) then
        bury(id, queue, pri, '', now, call('HGET', C .. 'tries', id), why)
        letters[#letters + 1] = id
      else
        local place = pri .. '|' .. queue
        back[place] = back[place] or {}
        table.insert(back[place], id)
      end
    else
      local name = queue .. '\31' .. seq
      local s = seen[name]
      if not s then
        s = {queue = queue, seq = seq, pri = pri, first = tonumber(id)}
        seen[name] = s
        order[#order + 1] = s
      end
      s.first = math.min(s.first, tonumber(id))
    end
  end
  table.sort(order, function(a, b) return a.first > b.first end)
  for _, s in ipairs(order) do
    -- The list, not the numbers, says which one stands first.
    local first = call('LINDEX', seq_key(s.queue, s.seq), -1)
    if first then recover_sequence(s.queue, s.seq, s.pri, first, letters) end
  end
  for place, list in pairs(back) do
    local pri, queue = string.match(place, '^(%d+)|(.*)$')
    put_back(queue, pri, list)
  end
  return #entries / 2, #letters
end

local who = {leaver}
if leaver == '' then
  who = call('ZRANGEBYSCORE', C .. 'consumers', '-inf', '(' .. now, 'LIMIT', 0, 10)
end
-- All of them first, so that what one gives back wakes none of the others.
for _, consumer in ipairs(who) do deregister(consumer) end
local result = {}
for _, consumer in ipairs(who) do
  local count, letters = recover(consumer)
  result[#result + 1] = consumer
  result[#result + 1] = count
  result[#result + 1] = letters
end
return result
