//! scratch
use abi::hypercall::*;
use hostvmm::machine::*;
use hostvmm::memory::SlotId;
use hostvmm::vcpus::*;
use std::time::{Duration, Instant};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let icount = a.get(2).is_some_and(|s| s == "icount");
    let vcpus: usize = a.get(3).map_or(1, |s| s.parse().unwrap());
    let image = Image::open(std::path::Path::new(&a[1])).unwrap();
    let wl = workload::Workload::parse(a.get(4).map_or("stream", |s| s.as_str())).unwrap();
    let (g, b): (u32, u32) = (a.get(5).map_or(12, |s| s.parse().unwrap()), a.get(6).map_or(48, |s| s.parse().unwrap()));
    let va = va_bits(abi::Granule::from_shift(g).unwrap(), b).unwrap();
    let (pattern, params) = wl.encode();
    let cfg = MachineConfig {
        vcpus,
        clock: if icount { Clock::Icount } else { Clock::Wall },
        seed: 7,
        pattern,
        params,
        va,
        plant_exception: std::env::var("PLANT").is_ok(),
        transport: if std::env::var("HVC").is_ok() { Transport::Hvc } else { Transport::Mmio },
        ..Default::default()
    };
    let t = Instant::now();
    let m = Machine::build(&cfg, &image).unwrap();
    let v = Vcpus::start(&m).unwrap();
    println!("built {:?}", t.elapsed());
    let all = |n: usize| {
        let mut left = n;
        while left > 0 {
            match v.wait_event(Some(Duration::from_secs(10))) {
                Wait::Event(Event::Parked { vcpu, outcome }) => {
                    println!("{:?} parked {vcpu} {outcome:x?}", t.elapsed());
                    left -= 1;
                }
                Wait::Event(Event::Exception(e)) => {
                    println!("{e}");
                    return;
                }
                Wait::Event(e) => {
                    println!("{e:?}");
                    if matches!(e, Event::SystemOff) {
                        return;
                    }
                }
                Wait::TimedOut => {
                    println!("timeout");
                    return;
                }
                Wait::Interrupted => return,
            }
        }
    };
    all(vcpus);
    m.vm().start_dirty_log().unwrap();
    for s in 0..4 {
        let cmds: Vec<_> = (0..vcpus).map(|i| (i, Command::RunSteps { first: s, count: 1 })).collect();
        if let Err(e) = v.command_all(&cmds) {
            println!("{e}");
            return;
        }
        all(vcpus);
        let mut bm = vec![0u64; 2048 / 64];
        m.vm().harvest_dirty(SlotId::Region, &mut bm).unwrap();
        println!("dirty {}", bm.iter().map(|w| w.count_ones()).sum::<u32>());
    }
    let _ = v.command_all(&[(0, Command::SelfCheck { steps: 4 })]);
    all(1);
    let _ = v.command_all(&[(0, Command::Digest { range: m.layout().region(), pass: 1 })]);
    all(1);
    let cmds: Vec<_> = (0..vcpus).rev().map(|i| (i, Command::Stop)).collect();
    let _ = v.command_all(&cmds);
    all(99);
    println!("ticks {}", m.vm().now_ticks());
}
