--!include _common _counts _delay
-- Give messages that stock Kombu left in a ready list what it knows nothing of: a time to wait in
-- Redis, a sequence. All others keep their form, since a take reads it.
--
-- The list is gone through from its head, and set aside until it is empty: as in to_stock.lua.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 priority step   4… for each element from the head on: itself, its
--       sequence ("" for none), ms that it must wait (0 for none)
-- RETURN  {how many were done, 1 if the list is empty or has been replaced, else 0}; it ends at the
--         first element that isn't where the caller saw it
-- COST  O(1) for each element; 3 to 10 commands
local queue, pri = ARGV[2], ARGV[3]
local ready, aside = ready_key(queue, pri), C .. 'aside:' .. queue .. '\31' .. pri
local now, done = now_ms(), 0
for i = 4, #ARGV, 3 do
  local element, seq, wait_ms = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  if call('LINDEX', ready, -1) ~= element then break end
  call('RPOP', ready)
  if seq == '' and wait_ms == 0 then
    call('LPUSH', aside, element)
  else
    local id = tostring(call('INCR', C .. 'id'))
    call('HSET', C .. 'msg', id, whole(element))
    if wait_ms > 0 then
      delay(queue, pri, id, seq, now + wait_ms)
    else
      note_all(queue, seq)
      call('LPUSH', seq_key(queue, seq), id)
      if call('HSETNX', C .. 'seqs:' .. queue, seq, 'r' .. pri) == 1 then
        call('LPUSH', aside, '=' .. seq)
      end
    end
  end
  done = done + 1
end
save_counts()
if call('EXISTS', ready) == 1 then return {done, 0} end
if call('EXISTS', aside) == 1 then call('RENAME', aside, ready) end
return {done, 1}
