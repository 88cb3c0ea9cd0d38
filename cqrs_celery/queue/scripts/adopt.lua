--!include _common
-- Make a queue that stock Kombu filled one of ours.
--
-- Stock lets the list itself of a queue with x-expires end, with whatever it holds by then.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3… priority steps at which it has something
-- RETURN  1 if it was unknown, else 0
-- COST  O(steps)
for i = 3, #ARGV do
  call('PERSIST', ready_key(ARGV[2], ARGV[i]))
  if ARGV[i] ~= '0' then
    call('SADD', C .. 'prioritised', ARGV[2])
    call('SADD', C .. 'steps', ARGV[i])
  end
end
return call('SADD', C .. 'queues', ARGV[2])
