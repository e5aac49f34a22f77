"""Ways through NATs that plain ICE does not find: prediction, birthday probing, and a plan."""
