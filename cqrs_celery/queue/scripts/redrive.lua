--!include _common _settle
-- Put a dead letter back in line with a fresh count of tries: a sequence that it blocks goes on from
-- it; any other has gone on without it, and gets it at its end.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 message id
-- RETURN  1, or 0 if there is no such letter
-- COST  O(1); 6 commands
local letter = call('HGET', C .. 'dead:' .. ARGV[2], ARGV[3])
if not letter then return 0 end
local pri, seq = place_of(letter)
call('HDEL', C .. 'dead:' .. ARGV[2], ARGV[3])
call('HDEL', C .. 'tries', ARGV[3])
if seq ~= '' and call('HGET', C .. 'seqs:' .. ARGV[2], seq) == 'd' .. pri
   and call('LINDEX', seq_key(ARGV[2], seq), -1) == ARGV[3] then
  free_sequence(ARGV[2], seq, pri, true)
else
  enqueue(ARGV[3], ARGV[2], pri, seq)
end
return 1
