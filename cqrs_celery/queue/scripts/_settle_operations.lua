-- Needs _common, _counts, _delay, _settle and _letters. Settle what a consumer has finished, as
-- settle_and_take's header says of its operations.

local held, sequences, order = {}, {}, {}
local unread, bodies = {}, {}
local back = {}
local refused, revoked = {}, {}

local function sequence(queue, seq)
  local name = queue .. '\31' .. seq
  local s = sequences[name]
  if not s then
    local pri, n = held_state(call('HGET', C .. 'seqs:' .. queue, seq))
    s = {queue = queue, seq = seq, pri = pri, n = tonumber(n), held = tonumber(n), gone = 0}
    sequences[name] = s
    order[#order + 1] = s
  end
  return s
end

-- Take all that is held behind a message of a sequence back with it.
local function withdraw(s, id)
  local ids = call('LRANGE', seq_key(s.queue, s.seq), -s.n, -1)
  local ahead = 0
  for i = #ids, 1, -1 do
    if ids[i] == id then break end
    ahead = ahead + 1
  end
  for i = #ids - ahead - 1, 1, -1 do
    held[ids[i]] = nil
    revoked[#revoked + 1] = ids[i]
  end
  s.n = ahead
end

local function leave_sequence(s, id)
  local key = seq_key(s.queue, s.seq)
  if call('LINDEX', key, -1) == id then call('RPOP', key) else call('LREM', key, -1, id) end
  s.n, s.gone = s.n - 1, s.gone + 1
end

-- Store another payload in place of a message's own and of the body that it shares. Who looks for what
-- is not done looks into refs: there the message has an entry of its own from now on, under a number
-- that is not below its body's.
local function replace(id, body, text)
  if body == '' then return call('HSET', C .. 'msg', id, whole(text)) end
  local own = '0' .. id
  if body ~= own then
    call('HSET', C .. 'refs', own, 1)
    bodies[#bodies + 1] = body
  end
  call('HSET', C .. 'msg', id, '@' .. own .. '\n' .. text)
end

local function settle(op, id, record, argument, text)
  local pri, body, mark, queue, seq = string.match(record, '^%d+|(%d+)|(%d*)(!?)|([^\31]*)\31(.*)$')
  local s = seq ~= '' and sequence(queue, seq)
  if op == 'a' or (op == 'd' and not (s and blocks(queue))) then
    if s then leave_sequence(s, id) end
    if op == 'd' then
      bury(id, queue, pri, seq, now_ms(), call('HGET', C .. 'tries', id) or '0', text)
    else
      unread[#unread + 1] = id
      if mark ~= '' then call('HDEL', C .. 'dead:' .. queue, id) end
      if body ~= '' then bodies[#bodies + 1] = body end
    end
    return
  end
  if op == 'r' then call('HINCRBY', C .. 'tries', id, 1) end
  if op == 'l' and text ~= '' then replace(id, body, text) end
  if s then
    withdraw(s, id)
    s.back = {op = op, id = id, argument = argument, text = text}
    return
  end
  if op == 'l' then
    delay(queue, pri, id, '', now_ms() + tonumber(argument))
  else
    local place = pri .. '|' .. queue
    back[place] = back[place] or {}
    table.insert(back[place], id)
  end
end

-- Stop a sequence: from now on it is in the state l or d.
local function stop(s, kind)
  call('HSET', C .. 'seqs:' .. s.queue, s.seq, kind .. s.pri)
  local length = call('LLEN', seq_key(s.queue, s.seq))
  note(s.queue, s.seq, 'b', s.held - s.gone - length)
  note(s.queue, s.seq, kind, 1)
  note(s.queue, s.seq, kind .. 'b', math.max(0, length - 1))
end

-- Let a sequence go on, or stop, as the first message that went back says.
local function go_on(s, consumer)
  local first = s.back or {}
  note(s.queue, s.seq, 'x', math.max(1, s.n) - s.held)
  if s.n > 0 then
    note(s.queue, s.seq, 'b', s.held - s.gone - s.n)
    call('HSET', C .. 'seqs:' .. s.queue, s.seq, 'h' .. s.pri .. '|' .. s.n .. '|' .. consumer)
  elseif first.op == 'l' then
    stop(s, 'l')
    delay(s.queue, s.pri, '', s.seq, now_ms() + tonumber(first.argument))
  elseif first.op == 'd' then
    stop(s, 'd')
    bury(first.id, s.queue, s.pri, s.seq, now_ms(), call('HGET', C .. 'tries', first.id) or '0',
      first.text)
  else
    local has_more = free_sequence(s.queue, s.seq, s.pri, s.back ~= nil)
    note(s.queue, s.seq, 'b', s.held - s.gone - (has_more and 1 or 0))
  end
end

-- Read the operations: {letter, id, fence, argument, text} of each, and their ids.
local function read_operations(operations, text_at)
  local todo, ids = {}, {}
  for op, id, fence, argument in string.gmatch(operations, '(%a)(%d+)%.(%d+)%.(%d+)') do
    local one = {op, id, fence, argument, ''}
    if op == 'l' or op == 'd' then
      text_at = text_at + 1
      one[5] = ARGV[text_at]
    end
    -- What is not an ack may leave behind what was not there before.
    if op ~= 'a' then has_no_history = false end
    todo[#todo + 1] = one
    ids[#ids + 1] = id
  end
  return todo, ids
end

-- End the deliveries that the consumer still holds, and remember what they held.
local function end_deliveries(todo, ids, flight)
  local counted = {}
  local records = call_with('HMGET', flight, ids)
  for i, one in ipairs(todo) do
    one.is_held = records[i] and string.match(records[i], '^%d+') == one[3]
    if one.is_held then
      held[one[2]] = records[i]
      counted[#counted + 1] = one[2]
    end
  end
  call_with('HDEL', flight, counted)
end

-- To the tail in the order of settlement; to the head the oldest last, so that it comes first.
local function let_go_on(consumer)
  local returning = {}
  for _, s in ipairs(order) do
    if s.back then returning[#returning + 1] = s else go_on(s, consumer) end
  end
  table.sort(returning, function(a, b) return tonumber(a.back.id) > tonumber(b.back.id) end)
  for _, s in ipairs(returning) do go_on(s, consumer) end
end

-- Carry out the operations of `consumer`, whose deliveries are in `flight`; their texts stand in ARGV
-- after `text_at`. Returns the ids whose settlement counted nothing, and those that were taken back.
local function settle_operations(consumer, flight, operations, text_at)
  if operations == '' then return refused, revoked end
  local todo, ids = read_operations(operations, text_at)
  end_deliveries(todo, ids, flight)
  for _, one in ipairs(todo) do
    local id = one[2]
    -- Beside one of the present delivery may stand one of an earlier delivery of the same message.
    local record = one.is_held and held[id]
    if record then
      held[id] = nil
      settle(one[1], id, record, one[4], one[5])
    else
      refused[#refused + 1] = id
    end
  end
  call_with('HDEL', flight, revoked)
  forget(unread, bodies)
  let_go_on(consumer)
  for place, list in pairs(back) do
    local pri, queue = string.match(place, '^(%d+)|(.*)$')
    put_back(queue, pri, list)
  end
  return refused, revoked
end
