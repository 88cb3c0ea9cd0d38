--!include _common _settle
-- Delete a dead letter for good; a sequence that it blocked goes on with the message behind it.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 message id
-- RETURN  1, or 0 if there is no such letter
-- COST  O(1); 8 commands
local letter = call('HGET', C .. 'dead:' .. ARGV[2], ARGV[3])
if not letter then return 0 end
local pri, seq = place_of(letter)
call('HDEL', C .. 'dead:' .. ARGV[2], ARGV[3])
if seq ~= '' and call('HGET', C .. 'seqs:' .. ARGV[2], seq) == 'd' .. pri
   and call('LINDEX', seq_key(ARGV[2], seq), -1) == ARGV[3] then
  call('RPOP', seq_key(ARGV[2], seq))
  free_sequence(ARGV[2], seq, pri, true)
end
forget({ARGV[3]}, {body_of(call('HGET', C .. 'msg', ARGV[3]))})
return 1
