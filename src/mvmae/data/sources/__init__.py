"""Where images come from: folders, lists, tar shards, arrays, hubs."""
