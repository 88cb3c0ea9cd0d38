--!include _common _counts _settle _letters
-- Put a dead letter's message back in line, with a fresh count of tries.
--
-- The letter stays until the message is done. An archived one begins a new life.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 message id   4 "1": also an archived one
-- RETURN  "done"; "none" if there is no such letter, "tried" if it is in line or in flight already,
--         "archived" if it is and that was not asked for
-- COST  O(1); 16 commands
local queue, id = ARGV[2], ARGV[3]
local l = letter_of(queue, id)
if not l then return 'none' end
if l.state == 't' then return 'tried' end
if l.state == 'a' then
  if ARGV[4] ~= '1' then return 'archived' end
  l.first, l.times = now_ms(), 0
end
try_again(queue, id, l)
save_counts()
return 'done'
