--!include _common _counts _delay _settle _letters
-- Move messages out of the queue into the form in which stock Kombu keeps them, in their order.
--
-- Those of a ready list are set aside until the list is empty, then take its place: what comes
-- meanwhile stays behind them. Those delayed go to the tail of the ready list.
--
-- cq:aside:<queue>\31<step>  LIST  what was moved out of a ready list, while the rest still stands there
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 priority step   4 "ready" or "delayed"
--       5… for each message: the element of the ready list or the member of the delayed set that it is,
--       or whose sequence it comes first in; its id ("" for what a stock producer pushed); what to do:
--         m <stock message>  move it
--         d <why>            it can't be read: a dead letter
--         x -                it has expired: delete it
-- RETURN  {how many were done, 1 if the list is empty or has been replaced, else 0}; it ends at the
--         first message that isn't where the caller saw it
-- COST  O(1) for each message; 5 to 13 commands
local queue, pri, is_ready = ARGV[2], ARGV[3], ARGV[4] == 'ready'
local ready, aside = ready_key(queue, pri), C .. 'aside:' .. queue .. '\31' .. pri
local delayed = C .. 'delayed:' .. queue

local function stands(place)
  if is_ready then return call('LINDEX', ready, -1) == place end
  return call('ZSCORE', delayed, place)
end

local function leave(place)
  if is_ready then call('RPOP', ready) else call('ZREM', delayed, place) end
end

-- The sequence that an element or a member stands for, if any.
local function whole_sequence(place)
  if is_ready then return sequence_of(place) end
  return string.match(place, '^%d+||(.*)$')
end

local function take_out(place, id)
  if not stands(place) then return false end
  local seq = whole_sequence(place)
  if not seq then
    leave(place)
    return true
  end
  local key = seq_key(queue, seq)
  if (call('LINDEX', key, -1) or '') ~= id then return false end
  note_all(queue, seq)
  call('RPOP', key)
  if call('EXISTS', key) == 0 then
    call('HDEL', C .. 'seqs:' .. queue, seq)
    leave(place)
  end
  return true
end

local done = 0
for i = 5, #ARGV, 4 do
  local place, id, what, text = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if not take_out(place, id) then break end
  if what == 'd' then
    bury(id, queue, pri, '', now_ms(), call('HGET', C .. 'tries', id) or '0', text)
  elseif id ~= '' then
    forget({id}, {body_of(call('HGET', C .. 'msg', id))})
    -- What was being tried again has a letter still.
    call('HDEL', C .. 'dead:' .. queue, id)
  end
  if what == 'm' then call('LPUSH', is_ready and aside or ready, text) end
  done = done + 1
end
save_counts()
if not is_ready then
  refresh_due(queue)
  return {done, 0}
end
if call('EXISTS', ready) == 1 then return {done, 0} end
if call('EXISTS', aside) == 1 then call('RENAME', aside, ready) end
return {done, 1}
