--!include _common _counts _fanout
-- Give a message to every subscriber of its topic, once per publish id; or to none, where one of their
-- queues is full.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 publish id ("" for none)   3 ms to remember it   4 topic   5 body
--       6 message id   7 root id   8 parent id   9 sequence ("" for none)
--       10 how many messages may wait in each queue before it (0: any number)
-- RETURN  the number of queues it went to; -1 if this publish id was seen; {queue, messages that wait
--         there at least} if it is full
-- COST  O(subscribers); 3 commands a subscriber and 6 more, 1 a queue behind others of the sequence; with
--       a limit 6 a queue, unless its counts can't be relied on: see _counts

-- How many messages of a queue wait: what workers hold and dead letters are not counted. Of a sequence
-- that is ready or delayed, the token stands for the first.
local function waiting(queue, enough)
  local count = call('ZCARD', C .. 'delayed:' .. queue)
  for _, pri in ipairs(steps_in_use({queue})[1]) do count = count + call('LLEN', ready_key(queue, pri)) end
  if count >= enough then return count end
  local sequences = counts_of(queue, true)
  return count + sequences.b + sequences.lb + sequences.db
end

local function find_full(limit)
  local seen = {}
  for _, packed in ipairs(call('HVALS', C .. 'routes:' .. ARGV[4])) do
    local queue = cmsgpack.unpack(packed)[1]
    if not seen[queue] then
      seen[queue] = true
      local found = waiting(queue, limit)
      if found >= limit then return {queue, found} end
    end
  end
end

local limit, dedup = tonumber(ARGV[10]), C .. 'dedup:' .. ARGV[2]
if limit > 0 then
  if ARGV[2] ~= '' and call('EXISTS', dedup) == 1 then return -1 end
  local full = find_full(limit)
  if full then return full end
end
if ARGV[2] ~= '' and not call('SET', dedup, 1, 'NX', 'PX', ARGV[3]) then return -1 end
local reached = fanout(ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
save_counts()
return reached
