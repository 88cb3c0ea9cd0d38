-- Needs _common, _counts, _delay and _settle. Take what is next for a consumer from some queues.

-- Bytes of messages at most in one answer, unless the first is larger; and how many are read before it is
-- known how large they are.
local MOST_BYTES, FIRST_READ = 16777216, 16

-- {id, queue, sequence, priority step, tries, 1 if it has a shared body else 0} of each that was taken, and
-- their ids. The first `firsts` of them are not behind another one of their sequence.
local taken, ids, firsts = {}, {}, 0
-- The sequences that something was taken of, in the order of their first messages; and which of them a
-- message of `taken` is of.
local tokens, token_of = {}, {}
local has_raw, seen = {}, {}

local function hold(id, queue, pri, seq, token)
  local one = {id, queue, seq, pri, '0', 0}
  ids[#ids + 1] = id
  taken[#taken + 1] = one
  token_of[one] = token
end

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

-- The queues to take from, which stand in ARGV from `first` to `last`, and how many messages one delivery of
-- each holds. What is paused is left out.
local function queues_of(first, last, paused)
  local queues, sizes, is_paused = {}, {}, {}
  for _, queue in ipairs(paused) do is_paused[queue] = true end
  for i = first, last, 2 do
    if not is_paused[ARGV[i]] then
      queues[#queues + 1] = ARGV[i]
      sizes[#queues] = tonumber(ARGV[i + 1])
    end
  end
  return queues, sizes
end

-- Queues share the deliveries in turn; what one does not need is left to the others. A batch is one
-- delivery. Returns what is known of each queue by its place: `drained` is 'empty' if it has nothing more,
-- 'full' if `most` kept it from more, `left` how many messages still fit into its batches; and `emptied`: the
-- queues that had something and have nothing now, `used`: deliveries, `in_batches`: messages in batches.
local function take_in_turn(queues, sizes, steps, wanted, most)
  local drained, left, emptied, had = {}, {}, {}, {}
  local live, used, in_batches = #queues, 0, 0
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
  firsts = #taken
  return {drained = drained, left = left, emptied = emptied, used = used, in_batches = in_batches}
end

-- Take more of each sequence behind its first message: `run` in all, or as many as still fit into a batch.
local function take_runs(turn, run, most)
  local left = turn.left
  for _, t in ipairs(tokens) do
    local room, place = run - 1, t.place
    if left[place] then room = math.min(left[place], most - turn.in_batches) end
    local more = room > 0 and call('LRANGE', seq_key(t.queue, t.seq), -room - 1, -2) or {}
    for i = #more, 1, -1 do hold(more[i], t.queue, t.pri, t.seq, t) end
    if left[place] then
      left[place], turn.in_batches = left[place] - #more, turn.in_batches + #more
    end
    t.behind = #more
  end
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

-- Put what does not fit back to the heads of its queues, the last one first. Returns those queues.
local function return_from(first)
  local returned = {}
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
  return returned
end

-- Write down which consumer holds the sequences, and how many messages of each.
local function hold_sequences(consumer)
  for _, t in ipairs(tokens) do
    if not t.is_back then
      local state = 'h' .. t.pri .. '|' .. (1 + t.behind) .. '|' .. consumer
      call('HSET', C .. 'seqs:' .. t.queue, t.seq, state)
      note(t.queue, t.seq, 'b', -t.behind)
      note(t.queue, t.seq, 'x', t.behind)
    end
  end
end

-- Write down the deliveries in `flight`, and append to `pieces` what is delivered. Returns the take's number,
-- by which a fence grows with every delivery. A fence is odd for a message that was taken behind another
-- one of its sequence: that one is delivered after the first, at a time that the queue does not know.
local function note_deliveries(flight, messages, tries, pieces)
  local records = {}
  local take = call('INCRBY', C .. 'fence', 2 * #ids + 2) - 2 * #ids - 1
  take = take + take % 2
  for i, t in ipairs(taken) do
    local payload, body_id, body = unpack(messages[i])
    if not payload then
      -- Not an id, but a number that somebody else has pushed: nothing is stored under it.
      payload = t[1]
      if t[3] == '' then t[1] = adopt(payload, t[2]) end
    end
    local mark = '|'
    if tries[i] then
      t[5] = tries[i]
      if tonumber(tries[i]) >= LETTER then mark = '!|' end
    end
    local fence = string.format('%.0f', take + 2 * (i - 1) + (i > firsts and 1 or 0))
    records[#records + 1] = t[1]
    records[#records + 1] = fence .. '|' .. t[4] .. '|' .. body_id .. mark .. t[2] .. '\31' .. t[3]
    pieces[#pieces + 1] = payload
    if body ~= '' then
      t[6] = 1
      pieces[#pieces + 1] = body
    end
  end
  call_with('HSET', flight, records)
  return take
end

local function has_ready(queue, in_steps)
  for _, pri in ipairs(in_steps) do
    if call('EXISTS', ready_key(queue, pri)) == 1 then return true end
  end
  return false
end

-- One wake-up was enough for the first message only: pass it on where there is more.
local function pass_on(queues, steps, drained)
  for i, queue in ipairs(queues) do
    if drained[i] ~= 'empty' and has_ready(queue, steps[i]) then wake(queue) end
  end
end

local function go_idle(consumer)
  -- pcall: a full server refuses this write, and a consumer that only asks must not fail for it.
  if redis.pcall('SADD', C .. 'idle', consumer) == 1 and call('SREM', C .. 'busy', consumer) == 1 then
    for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
      redis.pcall('SADD', C .. 'idle:' .. queue, consumer)
    end
  end
end
