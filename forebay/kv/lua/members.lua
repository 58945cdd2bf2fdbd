-- Announce one member, or list the live ones, of a role.
--
-- KEYS[1]  members of the role: hash, address -> "expires_ms body"
-- ARGV     (none) to list; or address, body, time to live in ms (0: withdraw)
-- Returns  the bodies of the members that are alive
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if #ARGV == 3 and tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ARGV[3]) .. ' ' .. ARGV[2])
elseif #ARGV == 3 then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
local members, alive = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #members, 2 do
  local expires, body = string.match(members[i + 1], '^(%d+) (.*)$')
  if expires and tonumber(expires) > now then
    alive[#alive + 1] = body
  elseif #ARGV == 3 then
    redis.call('HDEL', KEYS[1], members[i])
  end
end
return alive
