--!include _common _counts _delay _settle _letters
-- Settle what a consumer has finished, then take what is next for it, in one round trip.
--
-- An operation counts only if the consumer still holds that delivery: same id, same fence.
--   a<id>.<fence>.0     ack: the message is done
--   n<id>.<fence>.0     give back unstarted: to its place, not counted as a delivery
--   r<id>.<fence>.0     put back after a start: to its place, counted
--   l<id>.<fence>.<ms>  deliver again after a delay; its text replaces the payload and the shared body,
--                       "" keeps them; in a sequence everything behind it waits
--   d<id>.<fence>.0     dead letter, its text says why; in a queue whose letters block, its sequence
--                       stops here
-- Putting back, delaying or blocking a message of a sequence takes the later ones that the consumer
-- holds of it back too, so that none can overtake it. While one ahead of it is still held after all
-- operations, it only returns to its place.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 operations, one after the other   4 how many deliveries to take (0:
--       only settle), of a sequence only the first message counts   5 how many messages of one sequence
--       6 "1" if the consumer had gone idle   7 the most messages to take in batches   8 number of queues
--       9… for each queue to take from, in the order of their turn: its name, how many messages one
--       delivery of it holds (1, or the size of a batch); then the texts of the operations that have
--       one, in their order
-- RETURN  {MessagePack of {1 if the consumer is known else 0, ids whose settlement counted nothing, ids
--          taken back, ms until something delayed is due (-1: nothing), the take's number, how many of
--          the messages are not behind another one of their sequence; these come first,
--          {{id, queue, sequence, priority step, tries, 1 if it has a shared body else 0}…}, all
--          paused queues}, of which nothing was taken; then of each: payload or head, and the shared body if it has one}
--         in one piece, since a client parses that in a third of the time
--         The fence of message i, from 0, is the take's number + 2 i, and one more behind another
--         message of its sequence: see fence_of
--         Less than was asked for where it would be more than 16 MiB: the rest is ready still
-- COST  9 commands for plain messages, 10 for more than 16; 1–5 per other settlement, 1–4 per message of a
--       sequence, 1 or 2 per queue with such as stand behind others; 8 more where anything is delayed,
--       expires, was delivered before, or has a priority; 2 more to go idle (1 a queue of the consumer's,
--       if a wake-up found it busy), 2 to be so no more; 1 more while a queue is paused, O(paused queues)
local consumer = ARGV[2]
local flight = C .. 'flight:' .. consumer
local operations, wanted, run = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local most = tonumber(ARGV[7])
local last_queue = 8 + 2 * tonumber(ARGV[8])
local refused, revoked = {}, {}
-- Bytes of messages at most in one answer, unless the first is larger; and how many are read before it is
-- known how large they are.
local MOST_BYTES, FIRST_READ = 16777216, 16

-- One command says that nothing is there that most of the others would look for, and whether a queue is
-- paused: EXISTS counts that key as often as it is named, and so once more than all others.
local PAUSED = C .. 'paused'
local found = call('EXISTS',
  C .. 'until', C .. 'tries', C .. 'due', C .. 'idle', C .. 'prioritised',
  PAUSED, PAUSED, PAUSED, PAUSED, PAUSED, PAUSED)
local is_plain = found % 6 == 0
has_no_history = is_plain
local paused = found >= 6 and call('SMEMBERS', PAUSED) or {}

---------------------------------------------------------------- settle
local held, sequences, order = {}, {}, {}
local unread, bodies = {}, {}
local back = {}

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
local function go_on(s)
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

if operations ~= '' then
  local todo, ids, counted, text_at = {}, {}, {}, last_queue
  for op, id, fence, argument in string.gmatch(operations, '(%a)(%d+)%.(%d+)%.(%d+)') do
    local one = {op, id, fence, argument, ''}
    if op == 'l' or op == 'd' then
      text_at = text_at + 1
      one[5] = ARGV[text_at]
    end
    -- What is not an ack may leave behind what was not there before.
    if op ~= 'a' then is_plain, has_no_history = false, false end
    todo[#todo + 1] = one
    ids[#ids + 1] = id
  end
  local records = call_with('HMGET', flight, ids)
  for i, one in ipairs(todo) do
    one.is_held = records[i] and string.match(records[i], '^%d+') == one[3]
    if one.is_held then
      held[one[2]] = records[i]
      counted[#counted + 1] = one[2]
    end
  end
  call_with('HDEL', flight, counted)
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
  -- To the tail in the order of settlement; to the head the oldest last, so that it comes first.
  local returning = {}
  for _, s in ipairs(order) do
    if s.back then returning[#returning + 1] = s else go_on(s) end
  end
  table.sort(returning, function(a, b) return tonumber(a.back.id) > tonumber(b.back.id) end)
  for _, s in ipairs(returning) do go_on(s) end
  for place, list in pairs(back) do
    local pri, queue = string.match(place, '^(%d+)|(.*)$')
    put_back(queue, pri, list)
  end
end

---------------------------------------------------------------- take
local is_known = call('ZSCORE', C .. 'consumers', consumer)
if wanted == 0 or not is_known then
  save_counts()
  return {cmsgpack.pack({is_known and 1 or 0, refused, revoked, -1, 0, 0, {}, paused})}
end

-- ms until the first of what is delayed is due; -1 if nothing is.
local function until_due()
  local first = not is_plain and call('ZRANGE', C .. 'due', 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, math.ceil(tonumber(first) - now_ms())) or -1
end

local due_in = until_due()
if due_in == 0 then
  promote(now_ms())
  due_in = until_due()
end
local taken, records, ids = {}, {}, {}
local queues, sizes, live, is_paused = {}, {}, 0, {}
for _, queue in ipairs(paused) do is_paused[queue] = true end
for i = 9, last_queue, 2 do
  if not is_paused[ARGV[i]] then
    live = live + 1
    queues[live], sizes[live] = ARGV[i], tonumber(ARGV[i + 1])
  end
end

-- Of a message of a sequence, also its token's place among `tokens`.
local token_of = {}

local function hold(id, queue, pri, seq, token)
  local one = {id, queue, seq, pri, '0', 0}
  ids[#ids + 1] = id
  taken[#taken + 1] = one
  token_of[one] = token
end

local function has_ready(queue, in_steps)
  for _, pri in ipairs(in_steps) do
    if call('EXISTS', ready_key(queue, pri)) == 1 then return true end
  end
  return false
end

local tokens = {}
local has_raw = {}

-- Store what somebody else has pushed, whole, as a message with an id.
local function adopt(element, queue)
  if not has_raw[queue] then
    has_raw[queue] = true
    call('SADD', C .. 'raw', queue)
  end
  local id = tostring(call('INCR', C .. 'id'))
  call('HSET', C .. 'msg', id, whole(element))
  return id
end

local seen = {}

-- A token gives its first message now; the rest of its run comes after every other sequence's first.
local function take_element(element, queue, pri, place)
  local seq = sequence_of(element)
  if seq then
    local id = call('LINDEX', seq_key(queue, seq), -1)
    if id then
      tokens[#tokens + 1] = {queue = queue, pri = pri, seq = seq, place = place}
      hold(id, queue, pri, seq, tokens[#tokens])
    elseif call('HDEL', C .. 'seqs:' .. queue, seq) == 0 then
      -- No sequence has ever put that there.
      hold(adopt(element, queue), queue, pri, '')
    end
  else
    local id = id_of(element)
    -- A second one of the same number is not the queue's.
    if not id or seen[id] then id = adopt(element, queue) end
    seen[id] = true
    hold(id, queue, pri, '')
  end
end

-- Queues share the deliveries in turn; what one does not need is left to the others. A batch is one
-- delivery. `left` counts the messages that still fit into a queue's batches, `in_batches` all of them.
local drained, left, used, in_batches = {}, {}, 0, 0
local had, emptied = {}, {} -- the queues that had something, and those of them that have nothing now
local steps = is_plain and {} or steps_in_use(queues)
while live > 0 and used < wanted do
  local share = math.max(1, math.floor((wanted - used) / live))
  for i, queue in ipairs(queues) do
    if not drained[i] and used < wanted then
      local size, before = sizes[i], #taken
      local room = math.min(share, wanted - used)
      if size > 1 then room = math.min(room * size, most - in_batches) end
      local fits = room
      for _, pri in ipairs(steps[i] or {'0'}) do
        local elements = room > 0 and call('RPOP', ready_key(queue, pri), room) or {}
        for _, element in ipairs(elements) do take_element(element, queue, pri, i) end
        room = room - #elements
      end
      local got = #taken - before
      used = used + math.ceil(got / size)
      if got > 0 then had[i] = true end
      if size > 1 then
        in_batches = in_batches + got
        left[i] = (left[i] or 0) + math.ceil(got / size) * size - got
      end
      if room > 0 or fits == 0 then
        drained[i] = room > 0 and 'empty' or 'full'
        live = live - 1
        if room > 0 and had[i] then emptied[#emptied + 1] = queue end
      end
    end
  end
end
local firsts = #taken
for _, t in ipairs(tokens) do
  local room, place = run - 1, t.place
  if left[place] then room = math.min(left[place], most - in_batches) end
  local more = room > 0 and call('LRANGE', seq_key(t.queue, t.seq), -room - 1, -2) or {}
  for i = #more, 1, -1 do hold(more[i], t.queue, t.pri, t.seq, t) end
  if left[place] then
    left[place], in_batches = left[place] - #more, in_batches + #more
  end
  t.behind = #more
end

-- Leave out what has expired: nobody is given it, and nothing is left of it.
local function drop_expired()
  local gone, gone_bodies, kept_ids, kept = {}, {}, {}, {}
  for i, last in ipairs(call_with('HMGET', C .. 'until', ids)) do
    if last and tonumber(last) < now_ms() then
      gone[#gone + 1] = ids[i]
      -- What may expire is in no sequence.
      firsts = firsts - 1
    else
      kept_ids[#kept_ids + 1] = ids[i]
      kept[#kept + 1] = taken[i]
    end
  end
  for _, payload in ipairs(call_with('HMGET', C .. 'msg', gone)) do
    gone_bodies[#gone_bodies + 1] = body_of(payload)
  end
  forget(gone, gone_bodies)
  ids, taken = kept_ids, kept
end

local looked_at = #taken
if not is_plain then drop_expired() end

-- Read what was taken, until it is more than an answer may hold; one message always fits. Returns
-- {payload or head, body id, body} of each that fits. Once it is known how large they are, as many are
-- read at once as may fit.
local function read_taken()
  local found, bytes, some = {}, 0, FIRST_READ
  while #found < #ids do
    local first = #found + 1
    local payloads = call('HMGET', C .. 'msg', unpack(ids, first, math.min(first + some - 1, #ids)))
    for i, payload in ipairs(payloads) do
      local one = {payload, '', ''}
      if payload and string.byte(payload) == 64 then
        local stop = string.find(payload, '\n', 2, true)
        one[2] = string.sub(payload, 2, stop - 1)
        one[3] = one[2] ~= '' and call('HGET', C .. 'body', one[2]) or ''
        one[1] = string.sub(payload, stop + 1)
      end
      bytes = bytes + #(one[1] or ids[first + i - 1]) + #one[3]
      if bytes > MOST_BYTES and #found > 0 then return found end
      found[#found + 1] = one
    end
    some = math.max(1, math.min(1000, math.floor((MOST_BYTES - bytes) * #found / bytes)))
  end
  return found
end

-- Put what does not fit back to the heads of its queues, the last one first.
local returned = {}

local function return_from(first)
  for i = #taken, first, -1 do
    local one, token = taken[i], token_of[taken[i]]
    if i > firsts then
      token.behind = token.behind - 1
    else
      if token then token.is_back = true end
      call('RPUSH', ready_key(one[2], one[4]), token and '=' .. one[3] or one[1])
      returned[one[2]] = true
    end
    ids[i], taken[i] = nil, nil
  end
  firsts = math.min(firsts, #taken)
end

local messages = #ids > 0 and read_taken() or {}
if #messages < #ids then return_from(#messages + 1) end
-- What has been taken in its time comes again however late: a retry, or from a worker that died.
if not is_plain then call_with('HDEL', C .. 'until', ids) end
for _, t in ipairs(tokens) do
  if not t.is_back then
    call('HSET', C .. 'seqs:' .. t.queue, t.seq, 'h' .. t.pri .. '|' .. (1 + t.behind) .. '|' .. consumer)
    note(t.queue, t.seq, 'b', -t.behind)
    note(t.queue, t.seq, 'x', t.behind)
  end
end
-- All of it was too late: more of that may stand before what is not.
if looked_at > 0 and #ids == 0 then due_in = 0 end
local pieces, take = {''}, 0

-- A fence grows with every delivery. It is odd for a message that was taken behind another one of its
-- sequence: that one is delivered after the first, at a time that the queue does not know.
local function fence_of(i)
  return string.format('%.0f', take + 2 * (i - 1) + (i > firsts and 1 or 0))
end

if #ids > 0 then
  take = call('INCRBY', C .. 'fence', 2 * #ids + 2) - 2 * #ids - 1
  take = take + take % 2
  local tries = is_plain and {} or call_with('HMGET', C .. 'tries', ids)
  for i, t in ipairs(taken) do
    local payload, body_id, body = unpack(messages[i])
    if not payload then
      -- Not an id, but a number that somebody else has pushed: nothing is stored under it.
      payload = t[1]
      if t[3] == '' then t[1] = adopt(payload, t[2]) end
    end
    records[#records + 1] = t[1]
    local mark = '|'
    if tries[i] then
      t[5] = tries[i]
      if tonumber(tries[i]) >= LETTER then mark = '!|' end
    end
    records[#records + 1] = fence_of(i) .. '|' .. t[4] .. '|' .. body_id .. mark .. t[2] .. '\31' .. t[3]
    pieces[#pieces + 1] = payload
    if body ~= '' then
      t[6] = 1
      pieces[#pieces + 1] = body
    end
  end
  call_with('HSET', flight, records)
  if ARGV[6] == '1' then
    call('SREM', C .. 'idle', consumer)
    call_with('SREM', C .. 'called', emptied)
  end
  -- One wake-up was enough for the first message only: pass it on while there is more.
  if not is_plain and (used >= wanted or in_batches >= most) and somebody_waits() then
    for i, queue in ipairs(queues) do
      if drained[i] ~= 'empty' and has_ready(queue, steps[i]) then wake(queue) end
    end
  elseif not is_plain then
    for queue in pairs(returned) do wake(queue) end
  end
elseif looked_at == 0 then
  -- pcall: a full server refuses this write, and a consumer that only asks must not fail for it.
  if redis.pcall('SADD', C .. 'idle', consumer) == 1 and call('SREM', C .. 'busy', consumer) == 1 then
    for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
      redis.pcall('SADD', C .. 'idle:' .. queue, consumer)
    end
  end
  -- What stands there is for the next take, at once.
  if ARGV[6] == '1' and notice_steps(queues) then due_in = 0 end
end
save_counts()
pieces[1] = cmsgpack.pack({1, refused, revoked, due_in, take, firsts, taken, paused})
return pieces
