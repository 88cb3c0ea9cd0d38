--!include _common _counts _settle _letters
-- Delete a dead letter with its message for good; a sequence that it held up goes on.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 message id
-- RETURN  "done"; "none" if there is no such letter, "tried" if it is in line or in flight
-- COST  O(1); 16 commands
local l = letter_of(ARGV[2], ARGV[3])
if not l then return 'none' end
if l.state == 't' then return 'tried' end
let_go(ARGV[2], ARGV[3], l)
save_counts()
return 'done'
