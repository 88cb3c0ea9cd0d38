--!include _common
-- Read events in the order of their positions.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 position after which to begin   3 the most to return
-- RETURN  {stream, record, stream, record, …} oldest first
-- COST  O(events); 1 command a run of events of one stream, and 1 more
local first = tonumber(ARGV[2])
local references = call('LRANGE', C .. 'all', first, first + tonumber(ARGV[3]) - 1)
local result, i = {}, 1
while i <= #references do
  local stream, version = string.match(references[i], '^(.*)\31(%d+)$')
  local last = i
  while references[last + 1] == stream .. '\31' .. string.format('%.0f', version + last + 1 - i) do
    last = last + 1
  end
  for _, record in ipairs(call('LRANGE', C .. 'stream:' .. stream, version - 1, version - 1 + last - i)) do
    result[#result + 1] = stream
    result[#result + 1] = record
  end
  i = last + 1
end
return result
