//! Requests and responses of one byte over TCP, one at a time.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Answers each byte with itself, one connection after another.
pub(crate) fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address);
    let listener = listener.with_context(|| format!("cannot listen at {address}"))?;
    for stream in listener.incoming() {
        // A client that breaks off is no reason to leave the next one unserved.
        if let Err(error) = stream.and_then(answer) {
            eprintln!("probe: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Sends bytes and waits for each to come back; prints how many did a second.
pub(crate) fn measure(address: &str, milliseconds: u64) -> Result<()> {
    let stream = TcpStream::connect(address);
    let mut stream = stream.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (start, limit) = (Instant::now(), Duration::from_millis(milliseconds));
    let (mut byte, mut trips) = ([b'x'], 0u32);
    while start.elapsed() < limit {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("the other end went away")?;
        trips += 1;
    }
    println!("{:.2}", f64::from(trips) / start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn every_byte_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0));
        measure(&address.to_string(), 1).unwrap();
        server.join().unwrap().unwrap();
    }
}
