-- Principals: who may call hosts, and what each may do. Earlier versions pass over entries of kinds that they do not know.
insert into kind (kind) values ('principal') on conflict do nothing;
