;; What TeaVM asks its JavaScript host for, where one instruction answers it. Others (sin, exp, log, …) are missing: a module that uses
;; them is refused with their names.
(module
  (func (export "floor") (param f64) (result f64) (f64.floor (local.get 0)))
  (func (export "ceil") (param f64) (result f64) (f64.ceil (local.get 0)))
  (func (export "sqrt") (param f64) (result f64) (f64.sqrt (local.get 0)))
)
