-- Version 6: no life has the number of one that is lost. Two servers that were started within a second of the life before began the same one, so that hosts
-- did not notice that the second lacked what the first had committed. Hosts that know only version 5 work beside it.

-- The life that the server is in; the first to ask begins it. Each session asks before anything else.
create or replace function current_life() returns bigint language plpgsql set search_path from current as $$
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
  -- Higher than any epoch and life before, also than those that are lost; by the clock, because what is lost is not known. If the clock is behind, a
  -- number that hardly any other life has: one that is lost may have begun from here, too.
  select case
      when clock > n then clock
      else n + 1000000 + (random() * 1000000)::bigint
    end into found_number
    from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as clock, coalesce(max(n), 0) as n
      from (select max(number) as n from life union all select max(epoch) from chain) as known) as before;
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
