--!include _common _counts _settle _letters
-- Look after the dead letters whose time has come: try them again, or end what has outlived its time.
--
-- A letter past its time to live is archived, and a sequence that it holds up stays closed, with all
-- that waits in it; where the policy says discard, it is deleted, and the sequence goes on.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 the most to look after in this call
-- RETURN  five entries a letter: queue, id, what was done (redriven, archived, discarded, or closed: it
--         was archived before and still holds up its sequence), how many wait behind it, 1 if those are
--         more than the policy's limit
-- COST  O(letters due); about 18 commands each
local now = now_ms()
local result = {}
for _, member in ipairs(call('ZRANGEBYSCORE', C .. 'redrive', '-inf', now, 'LIMIT', 0, ARGV[2])) do
  call('ZREM', C .. 'redrive', member)
  local queue, id = string.match(member, '^(.*)\31(%d+)$')
  local l, policy = letter_of(queue, id), policy_of(queue)
  if l and policy and l.state ~= 't' then
    local waiting, is_over = behind(queue, id, l), now - l.first >= policy.life
    local done = 'closed'
    if l.state == 'd' and not is_over then
      done = 'redriven'
      try_again(queue, id, l)
    elseif l.state == 'd' and policy.kind == 'discard' then
      done = 'discarded'
      let_go(queue, id, l)
    else
      if l.state == 'd' then
        done = 'archived'
        l.state = 'a'
        write_letter(queue, id, l)
      end
      if holds_up(queue, id, l) then look_after(queue, id, now + ALARM_MS) end
    end
    for _, one in ipairs({queue, id, done, waiting, waiting > policy.limit and 1 or 0}) do
      result[#result + 1] = one
    end
  end
end
save_counts()
return result
