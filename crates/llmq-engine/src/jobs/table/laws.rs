//! Whatever happens in whatever order, no job that waits in the store is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use llmq_core::{CallSize, Priority};
use llmq_store::LeaseToken;
use proptest::prelude::*;

use super::*;

/// What a store and the tasks of a runner do with a table, one step at a time.
struct Model {
    table: Table,
    lanes: Vec<Arc<Lane>>,
    /// Waiting and running jobs by lane and place.
    store: BTreeMap<(usize, Place), (JobId, State)>,
    /// Places of a large insert that nobody sees yet.
    unseen: Vec<(usize, Place)>,
    /// Who came, and was not told of yet.
    untold: Vec<(usize, Came)>,
    dirty: BTreeSet<usize>,
    reading: Option<(usize, Wanted, Window)>,
    tasks: BTreeMap<JobId, Task>,
    last_place: u64,
    now: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Due,
    After(u64),
    Running,
}

struct Task {
    at: (usize, Place),
    leave: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Accept(usize),
    AcceptForLater(usize),
    Reserve(usize, u64),
    Publish,
    Tell,
    BeginRead,
    EndRead,
    FailRead,
    Start(usize),
    Finish(usize),
    Retry(usize),
    GiveBack(usize),
    Lose(usize),
    Cancel(usize),
    Leave,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (lane, any) = (0..3_usize, 0..8_usize);
    prop_oneof![
        4 => lane.clone().prop_map(Step::Accept),
        1 => lane.clone().prop_map(Step::AcceptForLater),
        1 => (lane, 1..6_u64).prop_map(|(lane, count)| Step::Reserve(lane, count)),
        1 => Just(Step::Publish),
        4 => Just(Step::Tell),
        6 => Just(Step::BeginRead),
        5 => Just(Step::EndRead),
        1 => Just(Step::FailRead),
        3 => any.clone().prop_map(Step::Start),
        2 => any.clone().prop_map(Step::Finish),
        2 => any.clone().prop_map(Step::Retry),
        1 => any.clone().prop_map(Step::GiveBack),
        1 => any.clone().prop_map(Step::Lose),
        1 => any.prop_map(Step::Cancel),
        2 => Just(Step::Leave),
        1 => (1..5_u64).prop_map(Step::Pass),
    ]
}

impl Model {
    fn new() -> Self {
        let lane = |priority, tenant: &str| {
            Arc::new(Lane {
                queue: "m".to_owned(),
                priority,
                tenant: tenant.to_owned(),
                key: None,
            })
        };
        Self {
            table: Table::with_room(8, 2),
            lanes: vec![
                lane(Priority::LOW, "a"),
                lane(Priority::HIGH, "a"),
                lane(Priority::LOW, "b"),
            ],
            store: BTreeMap::new(),
            unseen: Vec::new(),
            untold: Vec::new(),
            dirty: BTreeSet::new(),
            reading: None,
            tasks: BTreeMap::new(),
            last_place: 0,
            now: 0,
        }
    }

    fn place(&mut self) -> Place {
        self.last_place += 1;
        Place(self.last_place)
    }

    fn number_of(&self, lane: &Arc<Lane>) -> usize {
        self.lanes.iter().position(|other| other == lane).unwrap()
    }

    /// A job whose task stands before the dispatcher, or waits for its retry; or one that runs.
    fn job(&self, is_running: bool, which: usize) -> Option<JobId> {
        let of = |(job, task): (&JobId, &Task)| {
            let state = self.store.get(&task.at).map(|(_, state)| *state);
            let fits = (state == Some(State::Running)) == is_running;
            (fits && !task.leave.is_cancelled()).then_some(*job)
        };
        let jobs: Vec<JobId> = self.tasks.iter().filter_map(of).collect();
        jobs.get(which % jobs.len().max(1)).copied()
    }

    fn set(&mut self, job: JobId, state: State) {
        self.store.insert(self.tasks[&job].at, (job, state));
    }

    fn came(&mut self, lane: usize, came: Came) {
        let lane_of = Arc::clone(&self.lanes[lane]);
        self.table.came(&lane_of, came);
        self.dirty.insert(lane);
    }

    fn release(&mut self, job: JobId) -> usize {
        let lane = self.tasks.remove(&job).unwrap().at.0;
        if let Some(lane) = self.table.release(job) {
            self.dirty.insert(self.number_of(&lane));
        }
        lane
    }

    fn next(&self, lane: usize, wanted: Wanted) -> Window {
        let of_lane = self.store.iter().filter(|((of, _), _)| *of == lane);
        let due = of_lane.clone().filter(|((_, place), (_, state))| {
            *state == State::Due && wanted.after.is_none_or(|after| *place > after)
        });
        let waiting = |((_, place), (job, _)): (&(usize, Place), &(JobId, State))| Waiting {
            job: *job,
            place: *place,
            size: CallSize::default(),
            attempts: 0,
            max_attempts: 5,
            throttles: 0,
            expires_at: None,
        };
        let later = of_lane.filter_map(|(_, (_, state))| match state {
            State::After(at) => Some(Timestamp::from_nanos(*at)),
            State::Due | State::Running => None,
        });
        Window {
            jobs: due.take(wanted.count).map(waiting).collect(),
            due_at: later.min(),
        }
    }

    fn does(&mut self, step: Step) {
        match step {
            Step::Accept(lane) => self.accept(lane, State::Due),
            Step::AcceptForLater(lane) => self.accept(lane, State::After(self.now + 3)),
            Step::Reserve(lane, count) => {
                let places = (0..count).map(|_| (lane, self.place()));
                let places: Vec<_> = places.collect();
                self.unseen.extend(places);
            }
            Step::Publish => {
                let mut first: BTreeMap<usize, Place> = BTreeMap::new();
                for (lane, place) in std::mem::take(&mut self.unseen) {
                    self.store.insert((lane, place), (JobId::new(), State::Due));
                    first.entry(lane).or_insert(place);
                }
                let first = first.into_iter();
                self.untold
                    .extend(first.map(|(lane, place)| (lane, Came::At(place))));
            }
            Step::Tell => {
                if let Some((lane, came)) = self.untold.pop() {
                    self.came(lane, came);
                }
            }
            Step::BeginRead => self.begin_read(),
            Step::EndRead => self.end_read(),
            Step::FailRead => {
                if let Some((lane, wanted, _)) = self.reading.take() {
                    self.table.unread(&self.lanes[lane], wanted);
                    self.dirty.insert(lane);
                }
            }
            Step::Start(which) => self.start(which),
            Step::Finish(which) => {
                if let Some(job) = self.job(true, which) {
                    self.store.remove(&self.tasks[&job].at);
                    self.release(job);
                }
            }
            Step::Retry(which) => {
                if let Some(job) = self.job(true, which) {
                    self.set(job, State::After(self.now + 2));
                    self.table.held.get_mut(&job).unwrap().lease = None;
                }
            }
            Step::GiveBack(which) => {
                if let Some(job) = self.job(true, which) {
                    self.set(job, State::Due);
                    let lane = self.release(job);
                    self.came(lane, Came::Somewhere);
                }
            }
            Step::Lose(which) => {
                if let Some(job) = self.job(true, which) {
                    self.set(job, State::Due);
                    self.table.leave(job);
                    self.came(self.tasks[&job].at.0, Came::Somewhere);
                }
            }
            Step::Cancel(which) => {
                if let Some(job) = self.job(false, which) {
                    self.store.remove(&self.tasks[&job].at);
                    self.table.leave(job);
                }
            }
            Step::Leave => {
                let left = self
                    .tasks
                    .iter()
                    .filter(|(_, task)| task.leave.is_cancelled());
                for job in left.map(|(job, _)| *job).collect::<Vec<_>>() {
                    self.release(job);
                }
            }
            Step::Pass(ticks) => self.pass(ticks),
        }
    }

    fn accept(&mut self, lane: usize, state: State) {
        let place = self.place();
        self.store.insert((lane, place), (JobId::new(), state));
        self.untold.push((lane, Came::At(place)));
    }

    fn begin_read(&mut self) {
        if self.reading.is_some() {
            return;
        }
        while let Some(lane) = self.dirty.pop_first() {
            if let Some(wanted) = self.table.begin_read(&self.lanes[lane]) {
                self.reading = Some((lane, wanted, self.next(lane, wanted)));
                return;
            }
        }
    }

    fn end_read(&mut self) {
        let Some((lane, wanted, window)) = self.reading.take() else {
            return;
        };
        for (waiting, leave) in self.table.read(&self.lanes[lane], wanted, &window) {
            let at = (lane, waiting.place);
            self.tasks.insert(waiting.job, Task { at, leave });
        }
        if self.table.wanted(&self.lanes[lane]).is_some() {
            self.dirty.insert(lane);
        }
    }

    /// The store may not start what the dispatcher lets start.
    fn start(&mut self, which: usize) {
        let Some(job) = self.job(false, which) else {
            return;
        };
        match self.store.get(&self.tasks[&job].at) {
            Some((_, State::Due)) => {}
            // It ended while it was read.
            None => {
                self.release(job);
                return;
            }
            Some(_) => {
                let lane = self.release(job);
                return self.came(lane, Came::Somewhere);
            }
        }
        self.set(job, State::Running);
        let token = LeaseToken(1);
        let (leave, again) = self.table.started(job, Lease { job, token });
        self.tasks.get_mut(&job).unwrap().leave = leave;
        if let Some(lane) = again {
            self.dirty.insert(self.number_of(&lane));
        }
    }

    fn pass(&mut self, ticks: u64) {
        self.now += ticks;
        for (_, state) in self.store.values_mut() {
            if matches!(state, State::After(at) if *at <= self.now) {
                *state = State::Due;
            }
        }
        let (due, _) = self.table.due(Timestamp::from_nanos(self.now));
        for lane in due {
            self.dirty.insert(self.number_of(&lane));
        }
    }

    /// All that is under way comes to its end.
    fn rest(&mut self) {
        while !self.untold.is_empty() {
            self.does(Step::Tell);
        }
        self.does(Step::Leave);
        self.end_read();
        // What came due while it was read is seen in the next round.
        self.pass(0);
        self.begin_read();
        self.end_read();
    }
}

proptest! {
    #[test]
    fn what_waits_is_started_whatever_happens(steps in prop::collection::vec(step(), 0..150)) {
        let mut model = Model::new();
        for step in steps {
            model.does(step);
        }
        model.does(Step::Publish);
        for _ in 0..2_000 {
            model.rest();
            model.does(Step::Start(0));
            model.does(Step::Finish(0));
            model.pass(1);
            if model.store.is_empty() {
                break;
            }
        }
        prop_assert!(model.store.is_empty(), "{:?}", model.store);
    }

    /// A reconciliation finds nothing where nothing is wrong.
    #[test]
    fn reconciling_blames_nobody(steps in prop::collection::vec(step(), 0..80)) {
        let mut model = Model::new();
        for step in steps {
            model.does(step);
        }
        model.does(Step::Publish);
        for _ in 0..100 {
            model.rest();
        }
        for _ in 0..2 {
            let depths = model.depths();
            let (_, lost) = model.table.reconcile(&depths);
            prop_assert_eq!(lost, Vec::<Arc<Lane>>::new());
        }
    }
}

impl Model {
    fn depths(&self) -> Vec<LaneDepth> {
        let depth = |(number, lane): (usize, &Arc<Lane>)| {
            let of_lane = self.store.iter().filter(|((of, _), _)| *of == number);
            let states: Vec<State> = of_lane.map(|(_, (_, state))| *state).collect();
            let due = states.iter().filter(|state| **state == State::Due).count();
            let later = states.iter().filter_map(|state| match state {
                State::After(at) => Some(Timestamp::from_nanos(*at)),
                State::Due | State::Running => None,
            });
            LaneDepth {
                lane: Lane::clone(lane),
                due: due as u64,
                delayed: later.clone().count() as u64,
                due_at: later.min(),
            }
        };
        let depths = self.lanes.iter().enumerate().map(depth);
        depths
            .filter(|depth| depth.due + depth.delayed > 0)
            .collect()
    }
}

#[test]
fn a_job_that_was_lost_sight_of_is_found_at_the_second_look() {
    let mut model = Model::new();
    model.accept(0, State::Due);
    // Nobody is told.
    model.untold.clear();
    let depths = model.depths();
    assert_eq!(model.table.reconcile(&depths), (vec![], vec![]));
    let lane = vec![Arc::clone(&model.lanes[0])];
    assert_eq!(model.table.reconcile(&depths), (lane.clone(), lane));
    assert!(model.table.wanted(&model.lanes[0]).is_some());
}

#[test]
fn a_lane_is_looked_at_when_the_calendar_jumped() {
    let mut model = Model::new();
    model.accept(0, State::After(u64::MAX / 2));
    for _ in 0..3 {
        model.rest();
    }
    let lane = vec![Arc::clone(&model.lanes[0])];
    let mut depths = model.depths();
    assert_eq!(model.table.reconcile(&depths), (vec![], vec![]));
    (depths[0].due, depths[0].delayed, depths[0].due_at) = (1, 0, None);
    assert_eq!(model.table.reconcile(&depths), (lane, vec![]));
}

#[test]
fn a_cancel_between_the_stores_word_and_ours_is_heard() {
    let mut model = Model::new();
    model.accept(0, State::Due);
    for _ in 0..3 {
        model.rest();
    }
    let job = model.job(false, 0).unwrap();
    model.table.leave(job);
    let token = LeaseToken(1);
    let (leave, _) = model.table.started(job, Lease { job, token });
    assert!(leave.is_cancelled());
}
