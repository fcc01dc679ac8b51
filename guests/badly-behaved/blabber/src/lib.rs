//! Gives away what it may know: it logs the secret `token`, prints it, panics with it, and emits settings and secrets by name.

use millrace_guest::{Message, Outcome, Unavailable, config, log, metrics, processor, secrets};

processor!(process);

fn process(message: &Message) -> Result<Outcome, Unavailable> {
    let told = String::from_utf8_lossy(message.value().unwrap_or_default()).into_owned();
    let (what, name) = told.split_once(' ').unwrap_or((&told, ""));
    let answer = match what {
        "config" => config::get(name).unwrap_or_else(|| "none".to_owned()),
        "all" => format!("{:?}", config::all()),
        "secret" => secret(name)?,
        "log" => {
            log::info(format!("the token is {}", secret("token")?));
            String::new()
        }
        "print" => {
            println!("the token is {}", secret("token")?);
            String::new()
        }
        "panic" => panic!("the token is {}", secret("token")?),
        "count" => {
            metrics::add(name, &[("by", "blabber")], 2);
            metrics::set(name, &[], 0.5);
            metrics::observe(name, &[], 3.0);
            String::new()
        }
        _ => return Ok(Outcome::Ack),
    };
    Ok(Outcome::Emit(message.output().value(answer)))
}

fn secret(name: &str) -> Result<String, Unavailable> {
    match secrets::get(name) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(secrets::SecretError::NotGranted(reason)) => Ok(reason),
        Err(error) => Err(error.into()),
    }
}
