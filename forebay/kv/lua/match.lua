-- Longest prefix that each live node holds.
--
-- KEYS[1]  nodes of this root: hash, node -> "epoch expires_ms"
-- ARGV[1]  block keys, 16 bytes each, root to leaf, packed
-- Returns  {node, depth, node, depth, ...} for depth > 0
--
-- Nodes register from root to leaf and evict from leaf to root, so a node that has block n has all blocks
-- before it: a binary search per node reads about log2(n) entries. A few blocks inside the found prefix are
-- checked; if one is missing the search was misled and the node is scanned block by block.
local nodes = redis.call('HGETALL', KEYS[1])
local prefix = string.sub(KEYS[1], 1, -6)
local packed = ARGV[1]
local num_keys = math.floor(#packed / 16)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function has(owner, depth)
  local key = string.sub(packed, depth * 16 - 15, depth * 16)
  local bucket = string.byte(key, 1) * 16 + math.floor(string.byte(key, 2) / 16)
  return redis.call('HEXISTS', prefix .. owner .. bucket, key) == 1
end

local function scan(owner)
  for depth = 1, num_keys do
    if not has(owner, depth) then return depth - 1 end
  end
  return num_keys
end

local function search(owner)
  if num_keys == 0 or not has(owner, 1) then return 0 end
  if has(owner, num_keys) then return num_keys end
  local low, high = 1, num_keys
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if has(owner, middle) then low = middle else high = middle end
  end
  return low
end

local function is_closed(owner, depth)
  return depth < 3 or (has(owner, depth - 1) and has(owner, 2) and has(owner, math.ceil(depth / 2)))
end

local found = {}
for i = 1, #nodes, 2 do
  local epoch, expires = string.match(nodes[i + 1], '^(%S+) (%d+)$')
  if epoch and tonumber(expires) > now then
    local owner = nodes[i] .. ':' .. epoch .. ':'
    local depth = search(owner)
    if not is_closed(owner, depth) then depth = scan(owner) end
    if depth > 0 then
      found[#found + 1] = nodes[i]
      found[#found + 1] = depth
    end
  end
end
return found
