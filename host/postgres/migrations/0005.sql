-- Version 5: the seats of hosts. Hosts that know only version 4 work beside it.

-- The host's number among those that live, by which work is spread; null until it has seen who else does.
alter table host add column seat int;
