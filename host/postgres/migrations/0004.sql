-- Version 4: lives of the database. In each it knows what was committed in it, and may lack the last of what was committed before: a server that
-- crashed has lost what did not wait for its disk, a standby that was promoted what had not reached it, and a restored one more. Whatever
-- was decided on what is lost must not be committed. Hosts that know only version 3 work beside it.

-- The life that the server is in. Unlogged, so that it is empty after a crash and on a promoted standby; and a server that was started since is in
-- another one, too, because its files may be older than they were.
create unlogged table life (number bigint not null, started_at timestamptz not null);
-- Where partitions ended when it began.
create unlogged table life_end (topic bigint not null, number int not null, next bigint not null, primary key (topic, number));
insert into life select (extract(epoch from clock_timestamp()) * 1000000)::bigint, pg_postmaster_start_time();

-- The life that the server is in; the first to ask begins it. Each session asks before anything else.
create function current_life() returns bigint language plpgsql set search_path from current as $$
declare
  found_number bigint;
begin
  select number into found_number from life where started_at = pg_postmaster_start_time();
  if found_number is not null then
    return found_number;
  end if;
  lock table life in share row exclusive mode;
  select number into found_number from life where started_at = pg_postmaster_start_time();
  if found_number is not null then
    return found_number;
  end if;
  -- Higher than any epoch and life before, also than those that are lost; by the clock, because what is lost is not known.
  select greatest((extract(epoch from clock_timestamp()) * 1000000)::bigint, coalesce(max(n), 0) + 1000000) into found_number
    from (select max(number) as n from life union all select max(epoch) from chain) as before;
  -- In the order in which commits lock. Every lease from before is void, and nobody has the work: who had it may be preferred for it no more.
  perform from chain order by id for no key update;
  update chain set epoch = found_number, holder = null, works = false;
  -- No number that was given in what is lost is given again.
  update meta set value = greatest(value + 1, found_number) where name = 'producer';
  perform from kind order by kind for no key update;
  update kind set version = greatest(version + 1, found_number);
  insert into entry (kind, key, value, version) select kind, '', null, version from kind where kind <> 'topic'
    on conflict (kind, key) do update set value = null, version = excluded.version;
  delete from life_end;
  insert into life_end select topic, number, next from partition;
  delete from life;
  insert into life values (found_number, pg_postmaster_start_time());
  return found_number;
end $$;

-- A chain that is made again in this life has no epoch that it had in another.
create function first_epoch() returns bigint language sql stable set search_path from current as $$
  select coalesce((select number from life), 0)
$$;
alter table chain alter column epoch set default first_epoch();
